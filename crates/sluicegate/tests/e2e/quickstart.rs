//! The quickstart: what its screen says is typed into a shell, line by line.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use sluicegate_testkit::client::{self, Client};
use sluicegate_testkit::wait;
use tempfile::TempDir;

use crate::BINARY;

#[test]
fn every_line_on_the_screen_works_when_it_is_pasted() {
    let run = Quickstart::start();
    let screen = run.screen();
    let commands = commands(&screen);
    let (calls, changes) = commands.split_at(6);
    for call in calls {
        assert_eq!(run.shell(call).trim_matches('"'), "Hello, APISIX!", "{call}");
    }
    let with_version =
        |call: &str| run.shell(&call.replacen("curl", "curl -o answer -w '%{http_version}'", 1));
    let versions: Vec<String> = calls.iter().map(|call| with_version(call)).collect();
    assert_eq!(versions, ["1.1", "2", "2", "1.1", "1.1", "1.1"]);

    let [stream, with_yq, with_grep, puts @ ..] = changes else { panic!("{changes:?}") };
    let events = (1..=5).map(|n| format!("data: {n}\n\n")).collect::<String>();
    assert_eq!(run.shell(stream), events);
    let doctor = screen.lines().find(|line| line.contains(" doctor ")).expect("it is there");
    let told = run.shell(doctor);
    assert!(told.contains("ok   dry_run"), "{told}");
    assert!(
        with_yq.contains("yq '.deployment.admin.admin_key[0].key' quickstart/conf/config.yaml")
    );
    let key = run.shell(&format!("{with_grep}; echo \"$admin_key\""));
    assert_eq!(key.trim().len(), 32, "{key}");
    if run.shell("command -v yq || true").is_empty() {
        println!("skipped: yq is not installed");
    } else {
        assert_eq!(run.shell(&format!("{with_yq}; echo \"$admin_key\"")), key);
    }
    let told = ["\"Hello, APISIX!\"", "\"Hello, APISIX!\"", "Hello, APISIX!", "\"path\":\"/aws\""];
    assert_eq!(puts.len(), told.len());
    for (put, told) in puts.iter().zip(told) {
        // First switched off, so that the line has something to change.
        let admin = run.addr(3);
        run.shell(&format!(
            "{with_grep}\ncurl -o off -X PATCH -H \"X-API-KEY: $admin_key\" \
             http://{admin}/apisix/admin/routes/1 -d '{{\"status\": 0}}'"
        ));
        assert_eq!(client::get(run.addr(0), "/aws").status, 404);
        let answer = run.shell(&format!("{with_grep}\n{put}"));
        assert!(answer.contains("\"key\":\"/apisix/routes/1\""), "{answer}");
        let answer = run.shell(&calls[0]);
        assert!(answer.contains(told), "{put}\n{answer}");
    }
}

#[test]
fn a_client_without_a_server_name_gets_the_certificate() {
    let run = Quickstart::start();
    for name in [None, Some("localhost")] {
        let mut client = Client::try_tls(run.addr(2), name, &["http/1.1"]).expect("TLS works");
        assert_eq!(client.get("/aws?name=TLS").text(), "\"Hello, TLS!\"", "{name:?}");
    }
}

#[test]
fn a_second_run_keeps_what_was_changed_and_makes_what_is_missing() {
    let mut run = Quickstart::start();
    let files = ["conf/config.yaml", "standin.json"].map(|name| run.folder().join(name));
    let texts = files.clone().map(|file| fs::read_to_string(file).unwrap());
    for file in &files {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
    let admin = |run: &Quickstart, method: &str, path: &str, body: &str| {
        let key = texts[0].split_once("key: '").unwrap().1.split_once('\'').unwrap().0;
        let path = format!("/apisix/admin{path}");
        client::request(run.addr(3), method, &path, &[("X-API-KEY", key)], body).status
    };
    assert_eq!(admin(&run, "PATCH", "/routes/1", r#"{"uri": "/mine"}"#), 200);
    assert_eq!(admin(&run, "DELETE", "/routes/quickstart-iam", ""), 200);

    run.stop();
    run.again();
    assert_eq!(files.map(|file| fs::read_to_string(file).unwrap()), texts);
    for (target, status) in [
        ("/mine", 200),
        ("/aws", 404),
        ("/aws-iam", 200),
        ("/aws-path/a", 200),
        ("/aws-function", 200),
    ] {
        assert_eq!(client::get(run.addr(0), target).status, status, "{target}");
    }
}

#[test]
fn a_taken_port_is_named_and_nothing_is_left_behind() {
    for (taken, named) in [
        (0, "conf/config.yaml: apisix.node_listen"),
        (2, "conf/config.yaml: apisix.ssl.listen"),
        (3, "conf/config.yaml: deployment.admin.admin_listen"),
        (4, "standin.json: origin"),
        (5, "standin.json: api_gateway"),
        (7, "standin.json: invoke_api"),
        (8, "conf/config.yaml: apisix.control"),
    ] {
        let mut run = Quickstart::prepare();
        let held = TcpListener::bind(run.addr(taken)).expect("the port was free");
        let output = run.refused();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(&held.local_addr().unwrap().to_string()), "{told}");
        assert!(told.contains(named) && told.contains("--ports-from"), "{told}");
        assert!(!run.folder().exists(), "nothing was made");
        drop(held);
        run.again();
        run.stop();
    }
}

#[test]
fn an_interrupt_closes_every_port() {
    let mut run = Quickstart::start();
    assert!(run.refused_beside().contains("runs from quickstart already"));
    // A client that holds its connection does not hold up the end.
    let mut idle = Client::connect(run.addr(0));
    assert_eq!(idle.get("/aws").status, 200);
    run.stop();
    for offset in 0..PORTS {
        assert!(Client::try_connect(run.addr(offset)).is_err(), "port {offset}");
    }
    assert!(!run.folder().join("logs/sluicegate.pid").exists());
}

/// A quickstart on nine ports of its own.
struct Quickstart {
    home: TempDir,
    base: u16,
    child: Option<Child>,
}

impl Quickstart {
    /// A place for one, and ports that were free a moment ago.
    fn prepare() -> Self {
        let base = wait::until("nine free ports in a row", || {
            let probe = TcpListener::bind("127.0.0.1:0").ok()?;
            // Away from the system's own choice, which other tests live on.
            let base = 10_000 + probe.local_addr().ok()?.port() % 2_000 * 10;
            let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
            (base..base + PORTS).all(free).then_some(base)
        });
        Self { home: TempDir::new().expect("a temporary folder"), base, child: None }
    }

    #[track_caller]
    fn start() -> Self {
        let mut run = Self::prepare();
        run.again();
        run
    }

    fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("quickstart").current_dir(self.home.path()).stdin(Stdio::null());
        if !self.folder().exists() {
            command.arg(format!("--ports-from={}", self.base));
        }
        command
    }

    /// Starts it and waits until the screen is there.
    #[track_caller]
    fn again(&mut self) {
        let file = |name: &str| fs::File::create(self.home.path().join(name)).expect("ours");
        let child = self.command().stdout(file("screen")).stderr(file("errors")).spawn();
        self.child = Some(child.expect("the binary can be run"));
        wait::until("the screen", || {
            if let Some(status) = self.child.as_mut()?.try_wait().ok()? {
                let errors = fs::read_to_string(self.home.path().join("errors"));
                panic!("it ended ({status}): {errors:?}");
            }
            self.screen().contains("a plain upstream:").then_some(())
        });
    }

    /// Runs it to its end, which is an error.
    #[track_caller]
    fn refused(&self) -> Output {
        let output = self.command().output().expect("the binary can be run");
        assert!(!output.status.success());
        output
    }

    /// What a second one in the same folder says.
    fn refused_beside(&self) -> String {
        String::from_utf8_lossy(&self.refused().stderr).into_owned()
    }

    /// Ctrl-C.
    #[track_caller]
    fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).expect("it runs");
        let status = wait::until("its end", || child.try_wait().ok()?);
        assert!(status.success(), "{status}");
    }

    fn screen(&self) -> String {
        fs::read_to_string(self.home.path().join("screen")).unwrap_or_default()
    }

    /// What a shell prints for a line.
    #[track_caller]
    fn shell(&self, line: &str) -> String {
        let line = line.replace("curl ", "curl -sS --max-time 15 ");
        let output =
            Command::new("bash").args(["-c", &line]).current_dir(self.home.path()).output();
        let output = output.expect("there is a shell");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{line}\n{errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("quickstart")
    }

    /// The n-th of its ports: HTTP, HTTP, HTTPS, Admin API, origin, API Gateway, function URL,
    /// Invoke API, Control API.
    fn addr(&self, n: u16) -> SocketAddr {
        ([127, 0, 0, 1], self.base + n).into()
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The commands on the screen; one that goes over several lines is one.
fn commands(screen: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut open = false;
    for line in screen.lines() {
        if line.starts_with("  curl ") || line.starts_with("  admin_key=") {
            commands.push(line.trim().to_owned());
            open = true;
        } else if line.is_empty() {
            open = false;
        } else if let Some(command) = commands.last_mut().filter(|_| open) {
            *command += "\n";
            *command += line;
        }
    }
    commands
}

const PORTS: u16 = 9;
