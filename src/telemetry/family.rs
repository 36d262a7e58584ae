//! Label families keyed by the whole tuple of label values.
//!
//! The `prometheus` crate finds children by a hash of the values joined without a separator
//! and never compares them, so ("ab", "c") and ("a", "bc") would share a counter. Here the
//! tuple itself is the key. Handles are resolved when configuration is linked or a
//! connection is made; a request only increments them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::RwLock;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntGauge,
    core::{Collector, Desc, Metric},
    proto,
};

/// How many series one process may have; beyond it label values become `_other`.
pub const MAX_SERIES: usize = 10_000;

/// The label value of what does not fit.
pub const OTHER: &str = "_other";

/// What all families of a process count together.
#[derive(Clone, Debug, Default)]
pub struct SeriesBudget {
    used: Arc<AtomicUsize>,
    overflows: Arc<AtomicUsize>,
}

impl SeriesBudget {
    /// Series in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Children that were folded into `_other`.
    #[must_use]
    pub fn overflows(&self) -> usize {
        self.overflows.load(Ordering::Relaxed)
    }
}

/// A metric that can be the child of a family.
pub trait Child: Metric + Clone + Send + Sync + 'static {
    /// Its type in the exposition.
    const TYPE: proto::MetricType;
    /// A new child. Its own name does not show.
    fn create(buckets: &[f64]) -> Self;
    /// How many series one child is.
    fn series(buckets: &[f64]) -> usize;
}

impl Child for IntCounter {
    const TYPE: proto::MetricType = proto::MetricType::COUNTER;

    fn create(_: &[f64]) -> Self {
        Self::new("child", "child").expect("a constant valid name")
    }

    fn series(_: &[f64]) -> usize {
        1
    }
}

impl Child for IntGauge {
    const TYPE: proto::MetricType = proto::MetricType::GAUGE;

    fn create(_: &[f64]) -> Self {
        Self::new("child", "child").expect("a constant valid name")
    }

    fn series(_: &[f64]) -> usize {
        1
    }
}

impl Child for Histogram {
    const TYPE: proto::MetricType = proto::MetricType::HISTOGRAM;

    fn create(buckets: &[f64]) -> Self {
        Self::with_opts(HistogramOpts::new("child", "child").buckets(buckets.to_vec()))
            .expect("a constant valid name and sorted buckets")
    }

    fn series(buckets: &[f64]) -> usize {
        buckets.len() + 3
    }
}

/// All children of one metric. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Family<M> {
    inner: Arc<Inner<M>>,
}

#[derive(Debug)]
struct Inner<M> {
    desc: Desc,
    labels: &'static [&'static str],
    buckets: &'static [f64],
    budget: SeriesBudget,
    children: RwLock<BTreeMap<Vec<Box<str>>, M>>,
}

impl<M: Child> Family<M> {
    /// A family without children. `buckets` matter to histograms only.
    ///
    /// # Panics
    /// When the constant name or label names are not valid Prometheus names.
    #[must_use]
    pub fn new(
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        buckets: &'static [f64],
        budget: SeriesBudget,
    ) -> Self {
        let names = labels.iter().map(|&label| label.to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), names, Default::default())
            .expect("metric and label names are constants");
        let children = RwLock::default();
        Self {
            inner: Arc::new(Inner {
                desc,
                labels,
                buckets,
                budget,
                children,
            }),
        }
    }

    /// The child with these label values, made at first use. Not for the request path.
    pub fn child(&self, values: &[&str]) -> M {
        debug_assert_eq!(
            values.len(),
            self.inner.labels.len(),
            "{}",
            self.inner.desc.fq_name
        );
        let key: Vec<Box<str>> = values.iter().map(|&value| value.into()).collect();
        if let Some(child) = self.inner.children.read().get(&key) {
            return child.clone();
        }
        let cost = M::series(self.inner.buckets);
        let mut children = self.inner.children.write();
        let budget = &self.inner.budget;
        let key = if budget.used.load(Ordering::Relaxed) + cost > MAX_SERIES {
            budget.overflows.fetch_add(1, Ordering::Relaxed);
            values.iter().map(|_| OTHER.into()).collect()
        } else {
            key
        };
        children
            .entry(key)
            .or_insert_with(|| {
                budget.used.fetch_add(cost, Ordering::Relaxed);
                M::create(self.inner.buckets)
            })
            .clone()
    }

    /// Drops all children whose labels `stale` picks. Their holders keep counting unseen.
    pub fn retain(&self, mut keep: impl FnMut(&[Box<str>]) -> bool) {
        let mut dropped = 0;
        self.inner.children.write().retain(|values, _| {
            let stays = keep(values);
            dropped += usize::from(!stays);
            stays
        });
        let cost = M::series(self.inner.buckets) * dropped;
        self.inner.budget.used.fetch_sub(cost, Ordering::Relaxed);
    }
}

impl<M: Child> Collector for Family<M> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.inner.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let children = self.inner.children.read();
        if children.is_empty() {
            return Vec::new();
        }
        let metrics = children
            .iter()
            .map(|(values, child)| {
                let mut metric = child.metric();
                metric.set_label(
                    self.inner
                        .labels
                        .iter()
                        .zip(values)
                        .map(|(&name, value)| {
                            let mut pair = proto::LabelPair::default();
                            pair.set_name(name.to_owned());
                            pair.set_value(value.to_string());
                            pair
                        })
                        .collect(),
                );
                metric
            })
            .collect();
        let mut family = proto::MetricFamily::default();
        family.set_name(self.inner.desc.fq_name.clone());
        family.set_help(self.inner.desc.help.clone());
        family.set_field_type(M::TYPE);
        family.set_metric(metrics);
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounter, core::Collector};

    use super::{Family, MAX_SERIES, OTHER, SeriesBudget};

    #[test]
    fn label_tuples_that_join_to_the_same_text_stay_apart() {
        let family: Family<IntCounter> = Family::new(
            "weft_test_total",
            "Test.",
            &["a", "b"],
            &[],
            SeriesBudget::default(),
        );
        family.child(&["ab", "c"]).inc();
        family.child(&["a", "bc"]).inc_by(5);
        assert_eq!(family.child(&["ab", "c"]).get(), 1);
        assert_eq!(family.child(&["a", "bc"]).get(), 5);
        assert_eq!(family.collect()[0].get_metric().len(), 2);
    }

    #[test]
    fn series_are_bounded_and_the_rest_is_counted_together() {
        let budget = SeriesBudget::default();
        let family: Family<IntCounter> =
            Family::new("weft_test_total", "Test.", &["a"], &[], budget.clone());
        for n in 0..MAX_SERIES + 5 {
            family.child(&[&n.to_string()]).inc();
        }
        assert_eq!(family.child(&[OTHER]).get(), 5);
        assert!(budget.used() <= MAX_SERIES + 1);
        family.retain(|values| &*values[0] == "1");
        assert_eq!(family.collect()[0].get_metric().len(), 1);
        assert_eq!(budget.used(), 1);
    }
}
