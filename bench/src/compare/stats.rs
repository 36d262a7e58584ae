//! The arithmetic of rounds: minimum, median, maximum, ratios.

use serde::Serialize;

/// One figure over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self {
            min: round(min),
            median: round(median),
            max: round(max),
        })
    }
}

/// Three significant digits behind the point are more than any of this can carry.
pub(crate) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// `a / b`; `None` if that says nothing, as with a latency that noise made less than none.
pub(crate) fn ratio(a: f64, b: f64) -> Option<f64> {
    (a.is_finite() && a >= 0.0 && b > 0.0).then(|| round(a / b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        for (values, expect) in [
            (&[][..], None),
            (&[2.0][..], Some((2.0, 2.0, 2.0))),
            (&[3.0, 1.0][..], Some((1.0, 2.0, 3.0))),
            (&[9.0, 1.0, 4.0][..], Some((1.0, 4.0, 9.0))),
            (&[4.0, 1.0, 2.0, 3.0][..], Some((1.0, 2.5, 4.0))),
        ] {
            let spread = Spread::of(values.iter().copied())
                .map(|spread| (spread.min, spread.median, spread.max));
            assert_eq!(spread, expect, "{values:?}");
        }
    }

    #[test]
    fn ratios() {
        assert_eq!(ratio(1.0, 4.0), Some(0.25));
        assert_eq!(ratio(1.0, 3.0), Some(0.333));
        assert_eq!(ratio(1.0, 0.0), None);
        assert_eq!(ratio(-1.0, 2.0), None);
        assert_eq!(ratio(f64::NAN, 1.0), None);
    }
}
