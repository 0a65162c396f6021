//! Windows counted on a Redis, for every gateway that asks it.
//!
//! Keys are APISIX's, so that what a fleet of both counts for a group is counted together.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::LocalKey;
use std::time::{Duration, UNIX_EPOCH};

use ::redis::Script;

use super::Count;
use super::window::{Counted, SharedWindows, Slid, seconds, window_ms};
use crate::limit::now_ms;
use crate::limit::redis::{Ask, Code, Redis, RedisFailure, Word};
use crate::limit::store::{Counter, Remembered, Store};

/// A Redis, and how it counts.
pub(super) struct Remote {
    redis: Arc<Redis>,
    sliding: bool,
    delayed: Option<Delayed>,
}

/// Counting here and telling the Redis now and then.
pub(super) struct Delayed {
    pub(super) interval: Duration,
    pub(super) shares: Arc<Shares>,
    /// Counts while the Redis does not answer.
    pub(super) windows: SharedWindows,
}

/// What this gateway may use up of counters on a Redis until it asks again.
pub(super) type Shares = Store<Share>;

/// What is left of a window, in whole requests.
#[derive(Clone, Copy, Debug)]
struct Left {
    remaining: u64,
    /// How far beyond the limit it is, or 0.
    beyond: bool,
    reset: f64,
}

impl Count for Remote {
    type Failure = RedisFailure;

    async fn count(&self, name: &mut Vec<u8>, limit: (u64, u64)) -> Result<Counted, RedisFailure> {
        if let Some(delayed) = &self.delayed
            // As in APISIX, a window made of variables may be too short to be told about late.
            && Duration::from_secs(limit.1) > delayed.interval
        {
            return self.count_delayed(delayed, name, limit).await;
        }
        if self.sliding {
            return self.slide(name, limit).await;
        }
        let ask = fixed(name, limit.1, 1);
        let left = read_fixed(&self.redis.ask(ask, self.redis.deadline()).await?, limit.0)?;
        Ok(match left.beyond {
            false => Counted::Within { remaining: left.remaining, reset: left.reset },
            true => Counted::Beyond { reset: left.reset },
        })
    }
}

impl Remote {
    pub(super) fn new(redis: Arc<Redis>, sliding: bool, delayed: Option<Delayed>) -> Self {
        Self { redis, sliding, delayed }
    }

    async fn slide(
        &self,
        name: &[u8],
        (limit, window_s): (u64, u64),
    ) -> Result<Counted, RedisFailure> {
        let (at, by) = (Slot::now(window_s), self.redis.deadline());
        let before = self.redis.ask(Ask::Number(at.key(name, 1)), by).await?;
        let before = first(&before)?.count().min(limit);
        let asked = sliding(at.key(name, 0), 1, limit, at.share(before), window_s);
        let answer = self.redis.ask(asked, by).await?;
        let [accepted, count] = answer[..] else { return Err(RedisFailure::Strange) };
        let slid = Slid { accepted: accepted.count() == 1, count: count.count(), before };
        Ok(slid.counted(limit, at.window_ms, at.left_ms))
    }

    /// Counts on this gateway's share, and asks the Redis first where none is known.
    async fn count_delayed(
        &self,
        delayed: &Delayed,
        name: &[u8],
        limit: (u64, u64),
    ) -> Result<Counted, RedisFailure> {
        let mut asked = false;
        loop {
            let now = now_ms();
            let found = delayed.shares.count(name, now, |share| {
                let mut state = share.lock();
                if state.retired {
                    return None;
                }
                if !asked && (!state.known || now >= state.reset_at_ms) {
                    return Some((None, share.clone()));
                }
                let counted = state.take(now);
                if matches!(counted, Counted::Within { .. }) && !state.scheduled {
                    state.scheduled = true;
                    self.tell_later(delayed, share.clone(), name, limit);
                }
                Some((Some(counted), share.clone()))
            });
            let share = match found {
                (Some(counted), _) => return Ok(counted),
                (None, share) => share,
            };
            let flush = Flush::of(self, delayed, share, name, limit);
            let redis = self.redis.clone();
            let task = redis.background().spawn(async move { flush.run().await });
            task.await.map_err(|_| RedisFailure::Answer("the gateway is stopping".into()))?;
            asked = true;
        }
    }

    fn tell_later(&self, delayed: &Delayed, share: Arc<Share>, name: &[u8], limit: (u64, u64)) {
        let flush = Flush::of(self, delayed, share, name, limit);
        let interval = delayed.interval;
        self.redis.background().spawn(async move {
            tokio::time::sleep(interval).await;
            flush.share.lock().scheduled = false;
            flush.run().await;
        });
    }
}

/// A report to the Redis of what was counted here.
struct Flush {
    redis: Arc<Redis>,
    windows: SharedWindows,
    sliding: bool,
    share: Arc<Share>,
    name: Box<[u8]>,
    limit: (u64, u64),
}

impl Flush {
    fn of(
        remote: &Remote,
        delayed: &Delayed,
        share: Arc<Share>,
        name: &[u8],
        limit: (u64, u64),
    ) -> Self {
        Self {
            redis: remote.redis.clone(),
            windows: delayed.windows.clone(),
            sliding: remote.sliding,
            share,
            name: name.into(),
            limit,
        }
    }

    /// Reports, and notes what is left. Where the Redis does not answer, this gateway counts by
    /// itself, as APISIX does.
    async fn run(&self) {
        let used = self.share.lock().report();
        let left = match self.tell(used).await {
            Ok(left) => left,
            Err(error) => {
                tracing::error!(%error, "A Redis cannot be told what limit-count counted; this gateway counts by itself.");
                let counted = self.windows.fixed(&self.name, now_ms(), self.limit, used);
                match counted {
                    Counted::Within { remaining, reset } => {
                        Left { remaining, beyond: false, reset }
                    }
                    Counted::Beyond { reset } => Left { remaining: 0, beyond: true, reset },
                }
            }
        };
        let mut state = self.share.lock();
        state.reporting -= used;
        state.known = true;
        state.remaining = left.remaining;
        state.reset_at_ms = now_ms().saturating_add(milliseconds(left.reset));
    }

    async fn tell(&self, used: u64) -> Result<Left, RedisFailure> {
        let (limit, window_s) = self.limit;
        let by = self.redis.deadline();
        if !self.sliding {
            let answer = self.redis.ask_here(&fixed(&self.name, window_s, used), by).await?;
            return read_fixed(&answer, limit);
        }
        let at = Slot::now(window_s);
        let before = self.redis.ask_here(&Ask::Number(at.key(&self.name, 1)), by).await?;
        let before = first(&before)?.count().min(limit);
        // These requests are through already: they count, whatever the limit says.
        let asked = sliding(at.key(&self.name, 0), used, u64::MAX >> 11, 0.0, window_s);
        let answer = self.redis.ask_here(&asked, by).await?;
        let [_, count] = answer[..] else { return Err(RedisFailure::Strange) };
        let slid = Slid { accepted: true, count: count.count(), before };
        Ok(match slid.counted(limit, at.window_ms, at.left_ms) {
            Counted::Within { remaining, reset } => Left { remaining, beyond: false, reset },
            Counted::Beyond { reset } => Left { remaining: 0, beyond: true, reset },
        })
    }
}

/// This gateway's share of one counter.
#[derive(Default)]
pub(super) struct Share(Mutex<ShareState>);

#[derive(Default)]
struct ShareState {
    known: bool,
    retired: bool,
    /// A report is on its way.
    scheduled: bool,
    remaining: u64,
    /// Counted here and not reported yet.
    used: u64,
    /// On its way to the Redis, and not yet taken off `remaining`.
    reporting: u64,
    reset_at_ms: u64,
}

impl Share {
    fn lock(&self) -> MutexGuard<'_, ShareState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShareState {
    /// What is to be reported now.
    fn report(&mut self) -> u64 {
        let used = std::mem::take(&mut self.used);
        self.reporting += used;
        used
    }

    fn take(&mut self, now_ms: u64) -> Counted {
        let reset = seconds(self.reset_at_ms.saturating_sub(now_ms));
        match self.remaining.checked_sub(self.reporting + self.used + 1) {
            Some(remaining) => {
                self.used += 1;
                Counted::Within { remaining, reset }
            }
            None => Counted::Beyond { reset },
        }
    }
}

impl Counter for Share {
    fn retire(&self, now_ms: u64, forced: bool) -> bool {
        let mut state = self.lock();
        let idle = state.used + state.reporting == 0 && !state.scheduled;
        let over = idle && (forced || (state.known && state.reset_at_ms <= now_ms));
        state.retired |= over;
        over
    }

    fn remembered() -> &'static LocalKey<RefCell<Remembered<Self>>> {
        thread_local!(static REMEMBERED: RefCell<Remembered<Share>> = RefCell::default());
        &REMEMBERED
    }
}

/// Where a moment lies among sliding windows. Gateways agree on it by their wall clocks.
struct Slot {
    number: u64,
    window_ms: u64,
    left_ms: u64,
}

impl Slot {
    fn now(window_s: u64) -> Self {
        let now = sluicegate_gateway::core::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let window_ms = window_ms(window_s);
        Self { number: now / window_ms, window_ms, left_ms: window_ms - now % window_ms }
    }

    fn key(&self, name: &[u8], back: u64) -> Vec<u8> {
        let end = format!(".{}.counter", self.number.saturating_sub(back));
        [b"plugin-limit-count:", name, end.as_bytes()].concat()
    }

    /// What the window before still counts for.
    #[expect(clippy::cast_precision_loss, reason = "shares of counts")]
    fn share(&self, before: u64) -> f64 {
        before as f64 / seconds(self.window_ms) * seconds(self.left_ms)
    }
}

fn fixed(name: &[u8], window_s: u64, cost: u64) -> Ask {
    let key = [b"plugin-limit-count:v1:", name].concat();
    FIXED.on(key, vec![window_s.to_string(), cost.to_string()])
}

fn read_fixed(answer: &[Word], limit: u64) -> Result<Left, RedisFailure> {
    let [used, ttl_ms] = answer[..] else { return Err(RedisFailure::Strange) };
    let reset = ttl_ms.number() / 1000.0;
    let remaining = limit.checked_sub(used.count());
    Ok(Left { remaining: remaining.unwrap_or(0), beyond: remaining.is_none(), reset })
}

fn sliding(key: Vec<u8>, cost: u64, limit: u64, share: f64, window_s: u64) -> Ask {
    let keep_s = window_s.saturating_mul(2);
    let args = vec![cost.to_string(), limit.to_string(), share.to_string(), keep_s.to_string()];
    SLIDING.on(key, args)
}

fn first(answer: &[Word]) -> Result<Word, RedisFailure> {
    answer.first().copied().ok_or(RedisFailure::Strange)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate")]
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

/// Adds to a window, which begins when there is none: window in seconds, cost. Answers what is used
/// of it, and the milliseconds until it ends.
static FIXED: Code = Code::new(FIXED_TEXT, || Script::new(FIXED_TEXT));
const FIXED_TEXT: &str = "\
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[1])
  return {tonumber(ARGV[2]), tonumber(ARGV[1]) * 1000}
end
return {redis.call('INCRBY', KEYS[1], ARGV[2]), left}";

/// Adds to a window if the limit allows: cost, limit, what the window before counts for, seconds to
/// keep it. Answers whether it was added, and what is used.
static SLIDING: Code = Code::new(SLIDING_TEXT, || Script::new(SLIDING_TEXT));
const SLIDING_TEXT: &str = "\
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local limit = tonumber(ARGV[2])
if used >= limit or used + tonumber(ARGV[3]) >= limit then return {0, used} end
used = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('TTL', KEYS[1]) < 0 then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
return {1, used}";
