//! What a disk did, for people. Written on the reactor, read on the control thread.

use super::engine::{Operation, Request};
use super::queue;
use crate::stats::Count;
use std::time::Duration;
use worker_api::{DiskCounters, LATENCY_BUCKET_US, LATENCY_BUCKETS, Latency};

/// How long requests of one kind took.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [Count; LATENCY_BUCKETS],
    sum_ns: Count,
}

impl Histogram {
    fn add(&self, took: Duration) {
        let bucket = LATENCY_BUCKET_US.partition_point(|bound| Duration::from_micros(*bound) < took);
        self.buckets[bucket].one();
        // 584 years fit.
        self.sum_ns.add(took.as_nanos() as u64);
    }

    fn snapshot(&self) -> Latency {
        Latency { buckets: std::array::from_fn(|n| self.buckets[n].now()), sum_us: self.sum_ns.now() / 1000 }
    }
}

/// Requests of one kind.
#[derive(Debug, Default)]
struct Kind {
    requests: Count,
    bytes: Count,
    latency: Histogram,
}

/// The numbers of one disk; what each means says [`DiskCounters`].
#[derive(Debug, Default)]
pub struct Counters {
    reads: Kind,
    writes: Kind,
    flushes: Kind,
    errors: Count,
}

impl Counters {
    /// A request came back from the disk's threads, so long after its arrival.
    pub fn finished(&self, request: &Request, took: Duration) {
        if !request.ok {
            return self.refused();
        }
        let kind = match request.operation {
            Operation::Read => &self.reads,
            Operation::Write { .. } => &self.writes,
            Operation::Flush => &self.flushes,
        };
        kind.requests.one();
        kind.bytes.add(queue::total(&request.data));
        kind.latency.add(took);
    }

    /// A request made no sense, or failed.
    pub fn refused(&self) {
        self.errors.one();
    }

    /// All of them, each as it is when it is read.
    pub fn snapshot(&self) -> DiskCounters {
        DiskCounters {
            reads: self.reads.requests.now(),
            read_bytes: self.reads.bytes.now(),
            writes: self.writes.requests.now(),
            written_bytes: self.writes.bytes.now(),
            flushes: self.flushes.requests.now(),
            errors: self.errors.now(),
            read_latency: self.reads.latency.snapshot(),
            write_latency: self.writes.latency.snapshot(),
            flush_latency: self.flushes.latency.snapshot(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_that_is_not_too_small() {
        let histogram = Histogram::default();
        for (n, bound) in LATENCY_BUCKET_US.into_iter().enumerate() {
            let bound = Duration::from_micros(bound);
            histogram.add(bound);
            histogram.add(bound + Duration::from_nanos(1));
            let buckets = histogram.snapshot().buckets;
            assert_eq!((buckets[n], buckets[n + 1]), (if n == 0 { 1 } else { 2 }, 1), "up to {bound:?}");
        }
        histogram.add(Duration::from_secs(3600));
        assert_eq!(histogram.snapshot().buckets[LATENCY_BUCKETS - 1], 2);
    }

    #[test]
    fn many_short_durations_add_up() {
        let histogram = Histogram::default();
        for _ in 0..2000 {
            histogram.add(Duration::from_nanos(500));
        }
        assert_eq!(histogram.snapshot().sum_us, 1000);
        assert_eq!(histogram.snapshot().buckets[0], 2000);
    }
}
