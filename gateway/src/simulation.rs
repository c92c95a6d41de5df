//! Numbers for tests that play a core that remembers through very many steps, beside a model of it that
//! is too simple to be wrong. The same numbers each time, so that what fails fails again.

use proptest::{
    prelude::Rng as _,
    test_runner::{RngAlgorithm, TestRng},
};

/// Numbers without a pattern.
pub(crate) struct Numbers(TestRng);

impl Numbers {
    /// Those of a seed.
    pub(crate) fn seeded(seed: u64) -> Numbers {
        // The generator of that name must not begin with zeros alone.
        let octets = [seed.to_ne_bytes(), [0xa5; 8]].concat();
        Numbers(TestRng::from_seed(RngAlgorithm::XorShift, &octets))
    }

    /// Below a bound that is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    /// Once in so many times.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of some, which are not none.
    pub(crate) fn one_of<T: Copy>(&mut self, some: &[T]) -> T {
        // It fits, being below a length.
        some[self.below(some.len() as u64) as usize]
    }
}
