//! What the doors bear. Each limit is there for an attack that needs no credentials.

use std::time::Duration;

use crate::cli::DoorArgs;

/// What the doors bear.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections that are open, handshakes under way included.
    pub connections: usize,
    /// Connections from one address; of IPv6 from one /64, which is what one customer has.
    pub per_peer: usize,
    /// Requests under way.
    pub requests: usize,
    /// Requests under way from one address, or one /64.
    pub requests_per_peer: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long the head of an HTTP/1 request may take, from the end of the one before.
    pub head: Duration,
    /// Bytes of a request's head, or of its header list.
    pub head_bytes: usize,
    /// Lines of a request's head.
    pub headers: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// How long a request may take, its body included.
    pub request: Duration,
    /// How long an answer may take to be fetched, beyond what its request took.
    pub answer: Duration,
    /// How long a connection may be without a request.
    pub idle: Duration,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// Requests that an HTTP/2 peer may take back, beyond as many as it waited for.
    pub taken_back: u32,
    /// How long a stop waits for requests under way.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            per_peer: 256,
            requests: 512,
            requests_per_peer: 128,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            // A bearer token with many groups has some 8 KiB.
            head_bytes: 32 << 10,
            headers: 100,
            // A secret of 25 KiB in JSON, each character escaped at worst, is the largest thing told.
            body_bytes: 256 << 10,
            request: Duration::from_secs(30),
            answer: Duration::from_secs(30),
            idle: Duration::from_mins(2),
            streams: 100,
            taken_back: 100,
            drain: Duration::from_secs(20),
        }
    }
}

impl From<&DoorArgs> for Limits {
    fn from(args: &DoorArgs) -> Self {
        let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let time = |span: jiff::SignedDuration| Duration::try_from(span).unwrap_or_default();
        let (connections, per_peer) = (args.max_connections, args.max_connections_per_peer);
        let share = u64::from(args.max_requests) * u64::from(per_peer) / u64::from(connections);
        let requests = count(args.max_requests);
        Self {
            connections: count(connections),
            per_peer: count(per_peer),
            requests,
            // The same share as of connections: where a load balancer hides the callers, all of them.
            requests_per_peer: usize::try_from(share)
                .unwrap_or(usize::MAX)
                .clamp(1, requests),
            request: time(args.request_timeout),
            drain: time(args.drain_timeout),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        doors: DoorArgs,
    }

    #[test]
    fn one_peer_has_the_same_share_of_requests_as_of_connections() {
        let of = |args: &[&str]| {
            let line = Line::parse_from([&["claviger"], args].concat());
            Limits::from(&line.doors).requests_per_peer
        };
        assert_eq!(of(&[]), 128);
        assert_eq!(of(&[]), Limits::default().requests_per_peer);
        assert_eq!(of(&["--max-connections-per-peer=1024"]), 512);
        assert_eq!(of(&["--max-connections-per-peer=100000"]), 512);
        assert_eq!(of(&["--max-connections-per-peer=1"]), 1);
        assert_eq!(of(&["--max-requests=100000"]), 25_000);
    }
}
