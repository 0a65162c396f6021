//! What the process gives back to the system: two calls of the C library, the only `unsafe` code there is.

/// Makes glibc's allocator take every block of [`LARGE_BYTES`] or more from the system by itself and give
/// it back at once. By default the first large block that is freed raises that size, up to 32 MiB: from
/// then on large bodies live among small things, and what a burst of them took stays for good.
///
/// Other allocators are left as they are.
#[expect(unsafe_code, reason = "reviewed: see SAFETY")]
pub(crate) fn give_back_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt(3) takes no pointers; it is called before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, FREE_TOP_BYTES);
    }
}

/// Gives back the pages of the executable that starting has touched: with each instruction the kernel maps
/// the 64 KiB around it, and most of them never run again. What runs is mapped again from the page cache.
#[expect(unsafe_code, reason = "reviewed: see SAFETY")]
pub(crate) fn give_back_start_code() {
    #[cfg(target_os = "linux")]
    for (start, end) in code_of_the_executable() {
        // SAFETY: the range is one mapping of a file, private and never writable, as the kernel has just
        // listed it; its pages hold what the file holds, and come back as such (madvise(2)).
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// The mappings of the executable that can be run, as ranges of addresses.
#[cfg(target_os = "linux")]
fn code_of_the_executable() -> Vec<(usize, usize)> {
    let Ok(executable) = std::fs::read_link("/proc/self/exe") else { return Vec::new() };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter_map(|line| code_range(line, executable.to_str()?)).collect()
}

/// `start-end r-xp offset device inode path` of this path.
#[cfg(target_os = "linux")]
fn code_range(line: &str, path: &str) -> Option<(usize, usize)> {
    let rest = line.strip_suffix(path)?;
    let mut words = rest.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    // Read and run, private; nothing else stands before the path.
    (words.next()? == "r-xp" && words.count() == 3).then_some((address(start)?, address(end)?))
}

/// Below it a block costs less where the allocator keeps it: a held body has more than one page, and
/// most have less than this.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BYTES: libc::c_int = 512 << 10;
/// What may lie unused at the end of a heap. Setting the other fixes this, too, at a value so low that
/// memory would come and go with every request.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const FREE_TOP_BYTES: libc::c_int = 4 << 20;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_private_code_of_the_executable_is_given_back() {
        let line = |rights: &str, path: &str| {
            format!(
                "55d0c0a00000-55d0c0c00000 {rights} 0040f000 fe:00 1234                       {path}"
            )
        };
        let range = Some((0x55d0_c0a0_0000, 0x55d0_c0c0_0000));
        for (rights, path, expected) in [
            ("r-xp", "/usr/bin/sluicegate", range),
            ("r--p", "/usr/bin/sluicegate", None),
            ("rw-p", "/usr/bin/sluicegate", None),
            ("rwxp", "/usr/bin/sluicegate", None),
            ("r-xs", "/usr/bin/sluicegate", None),
            ("r-xp", "/usr/lib/libc.so.6", None),
            ("r-xp", "/other /usr/bin/sluicegate", None),
        ] {
            assert_eq!(
                code_range(&line(rights, path), "/usr/bin/sluicegate"),
                expected,
                "{rights} {path}"
            );
        }
        assert_eq!(code_range("", "/usr/bin/sluicegate"), None);
        assert_eq!(code_of_the_executable().len(), 1, "this test runs from one");
        give_back_start_code();
    }
}
