//! Percentiles of durations: every sample is kept, so they are exact.

use std::time::Duration;

/// Durations of one kind of operation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Sorts the samples once; `None` without any.
    pub(crate) fn summary(mut self) -> Option<Summary> {
        self.0.sort_unstable();
        let max = *self.0.last()?;
        let mean = self.0.iter().sum::<Duration>() / u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        Some(Summary {
            mean,
            p50: percentile(&self.0, 50.0),
            p90: percentile(&self.0, 90.0),
            p99: percentile(&self.0, 99.0),
            p999: percentile(&self.0, 99.9),
            max,
        })
    }
}

/// The usual percentiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) mean: Duration,
    pub(crate) p50: Duration,
    pub(crate) p90: Duration,
    pub(crate) p99: Duration,
    pub(crate) p999: Duration,
    pub(crate) max: Duration,
}

/// The nearest-rank percentile: the smallest sample that at least `percent` of all samples do not exceed.
fn percentile(sorted: &[Duration], percent: f64) -> Duration {
    assert!(!sorted.is_empty());
    let rank = (sorted.len() as f64 * percent / 100.0 - 1e-9).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(range: impl Iterator<Item = u64>) -> Samples {
        Samples(range.map(Duration::from_millis).collect())
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let summary = samples((1..=1000).rev()).summary().unwrap();
        assert_eq!(summary.p50, Duration::from_millis(500));
        assert_eq!(summary.p90, Duration::from_millis(900));
        assert_eq!(summary.p99, Duration::from_millis(990));
        assert_eq!(summary.p999, Duration::from_millis(999));
        assert_eq!(summary.max, Duration::from_millis(1000));
        assert_eq!(summary.mean, Duration::from_micros(500_500));
    }

    #[test]
    fn one_sample_is_every_percentile() {
        let summary = samples(7..=7).summary().unwrap();
        assert_eq!(summary.p50, summary.max);
        assert_eq!(summary.p999, Duration::from_millis(7));
    }

    #[test]
    fn few_samples_round_up() {
        let summary = samples(1..=3).summary().unwrap();
        assert_eq!(summary.p50, Duration::from_millis(2));
        assert_eq!(summary.p99, Duration::from_millis(3));
    }

    #[test]
    fn no_samples_have_no_summary() {
        assert_eq!(Samples::default().summary(), None);
    }
}
