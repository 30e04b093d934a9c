//! Checks of the ways to others: how long they are, and whether the clocks agree.
#![forbid(unsafe_code)]

use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use farcall_pool::model::{Check, Outcome};

use super::check;

/// A GPU call that waits takes this long at least; more is felt.
const SERVER_RTT_US_ADVISED: u128 = 50;
const POOL_RTT_US_ADVISED: u128 = 10_000;
/// Beyond a minute the pool refuses servers, and servers refuse grants.
const SKEW_MS_MAX: u64 = 60_000;
const SKEW_MS_ADVISED: u64 = 1000;
const ATTEMPTS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(2);

/// The shortest of some TCP handshakes with `address`: one round trip and little else. Blocks.
pub(super) fn handshake(address: &str) -> Option<Duration> {
    let address = address.to_socket_addrs().ok()?.next()?;
    let attempt = |_| {
        let began = Instant::now();
        TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        Some(began.elapsed())
    };
    (0..ATTEMPTS).map_while(attempt).min()
}

/// The way to a server.
pub(super) fn server(name: &str, time: Option<Duration>) -> Check {
    let advice = "Put client and server on one switch, or check the way with `farcall netperf`.";
    way(&format!("rtt {name}"), time, SERVER_RTT_US_ADVISED, advice)
}

/// The way to the pool.
pub(super) fn pool(time: Option<Duration>) -> Check {
    way(
        "rtt pool",
        time,
        POOL_RTT_US_ADVISED,
        "Check the network between here and the pool.",
    )
}

fn way(name: &str, time: Option<Duration>, advised_us: u128, advice: &str) -> Check {
    let meaning =
        format!("The time of a round trip (a TCP handshake); {advised_us} us or less is advised.");
    match time.map(|time| time.as_micros()) {
        None => {
            let advice = "Check that it runs, its address, and firewalls between.";
            check(name, Outcome::Failed, "no answer", &meaning, advice)
        }
        Some(us) if us <= advised_us => check(name, Outcome::Ok, &format!("{us} us"), &meaning, ""),
        Some(us) => check(
            name,
            Outcome::Warning,
            &format!("{us} us"),
            &meaning,
            advice,
        ),
    }
}

/// This machine's clock against the pool's.
pub(super) fn clock(skew_ms: u64) -> Check {
    let meaning = "Grants are valid for a time: clocks may differ by a minute.";
    let outcome = if skew_ms <= SKEW_MS_ADVISED {
        Outcome::Ok
    } else if skew_ms <= SKEW_MS_MAX {
        Outcome::Warning
    } else {
        Outcome::Failed
    };
    let found = format!("{skew_ms} ms from the pool's");
    check(
        "clock",
        outcome,
        &found,
        meaning,
        "Set it by NTP: `timedatectl set-ntp true`.",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::TcpListener;
    use std::time::Duration;

    use farcall_pool::model::Outcome;

    use super::{clock, handshake, pool, server};

    #[test]
    fn ways_are_short_long_or_not_there() {
        assert_eq!(
            server("a", Some(Duration::from_micros(50))).outcome,
            Outcome::Ok
        );
        assert_eq!(
            server("a", Some(Duration::from_micros(51))).outcome,
            Outcome::Warning
        );
        assert_eq!(pool(None).outcome, Outcome::Failed);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert!(handshake(&address).is_some());
        drop(listener);
        assert!(handshake(&address).is_none());
    }

    #[test]
    fn clocks_agree_or_not() {
        let outcomes = [0, 1001, 60_001].map(|skew_ms| clock(skew_ms).outcome);
        assert_eq!(outcomes, [Outcome::Ok, Outcome::Warning, Outcome::Failed]);
    }
}
