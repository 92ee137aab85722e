//! Choices that follow from a seed.

use model::Random;

/// Makes the choices of one case.
#[derive(Debug)]
pub(super) struct Dice(Random);

impl Dice {
    /// The choices of case number `case` under `seed`.
    pub(super) fn new(seed: u64, case: u64) -> Self {
        Self(Random::seeded(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(case)))
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.0.number() % end.max(1) as u64).unwrap_or_default()
    }

    /// True in `percent` of a hundred cases.
    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of these; there must be one.
    pub(super) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// One of these words; there must be one.
    pub(super) fn word<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}
