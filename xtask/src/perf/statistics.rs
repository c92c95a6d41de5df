//! From rounds to figures.

/// A figure out of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// The middle round.
    pub median: f64,
    /// A quarter of the rounds were below.
    pub lower: f64,
    /// A quarter of the rounds were above.
    pub upper: f64,
}

impl Figure {
    /// Median and quartiles; all 0 of no rounds at all.
    pub fn of(rounds: &[f64]) -> Figure {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (lower, median, upper) =
            (quantile(&sorted, 0.25), quantile(&sorted, 0.5), quantile(&sorted, 0.75));
        Figure { median, lower, upper }
    }

    /// Of the differences within each round: what struck both cancels.
    pub fn of_differences(rounds: &[f64], floor: &[f64]) -> Figure {
        let differences: Vec<f64> =
            rounds.iter().zip(floor).map(|(one, floor)| one - floor).collect();
        Figure::of(&differences)
    }
}

/// The least of one less the least of the other: what is left when nothing disturbed either, since
/// a disturbance only ever adds. 0 of no rounds at all.
pub fn best_difference(rounds: &[f64], floor: &[f64]) -> f64 {
    let least = |rounds: &[f64]| rounds.iter().copied().min_by(f64::total_cmp);
    least(rounds).zip(least(floor)).map_or(0.0, |(one, floor)| one - floor)
}

/// Between the two neighbours in proportion.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share * last as f64;
    // Not negative and not above `last`.
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quartiles() {
        for (rounds, lower, median, upper) in [
            (&[][..], 0.0, 0.0, 0.0),
            (&[7.0], 7.0, 7.0, 7.0),
            (&[3.0, 1.0], 1.5, 2.0, 2.5),
            (&[5.0, 1.0, 4.0, 2.0, 300.0], 2.0, 4.0, 5.0),
        ] {
            assert_eq!(Figure::of(rounds), Figure { median, lower, upper }, "{rounds:?}");
        }
    }

    #[test]
    fn the_best_is_of_undisturbed_rounds() {
        assert_eq!(best_difference(&[90.0, 36.0, 35.0], &[31.0, 80.0, 30.0]), 5.0);
        assert_eq!(best_difference(&[], &[30.0]), 0.0);
    }

    #[test]
    fn a_disturbance_of_a_whole_round_cancels() {
        let figure = Figure::of_differences(&[35.0, 135.0, 35.0], &[30.0, 130.0, 30.0]);
        assert_eq!(figure, Figure { median: 5.0, lower: 5.0, upper: 5.0 });
    }
}
