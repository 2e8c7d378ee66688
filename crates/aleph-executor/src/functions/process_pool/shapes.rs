//! Which processes are kept: pure.

/// The shapes that were asked for, the last first, and how many processes there may be.
#[derive(Debug)]
pub(super) struct Shapes<S> {
    recent: Vec<S>,
    limit: usize,
}

impl<S: PartialEq + Clone> Shapes<S> {
    /// For so many processes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            recent: Vec::new(),
            limit,
        }
    }

    /// One of this shape is needed, and more of it may be.
    pub(super) fn ask(&mut self, shape: S) {
        self.recent.retain(|known| *known != shape);
        self.recent.insert(0, shape);
        self.recent.truncate(self.limit);
    }

    /// None of this shape is needed any more.
    pub(super) fn forget(&mut self, shape: &S) {
        self.recent.retain(|known| known != shape);
    }

    /// How many there are to be of each: the same of all, and what is left of those asked for last.
    fn quotas(&self) -> impl Iterator<Item = (&S, usize)> {
        let shapes = self.recent.len().max(1);
        let (each, more) = (self.limit / shapes, self.limit % shapes);
        let quota = move |n| each + usize::from(n < more);
        let recent = self.recent.iter().enumerate();
        recent.map(move |(n, shape)| (shape, quota(n)))
    }

    /// A shape of which there are too few among these.
    pub(super) fn missing(&self, there: &[&S]) -> Option<S> {
        let mut quotas = self.quotas();
        let missing = quotas.find(|(shape, quota)| count(there, shape) < *quota);
        missing.map(|(shape, _)| shape.clone())
    }

    /// The place of one among these that is one too many.
    pub(super) fn surplus(&self, there: &[&S]) -> Option<usize> {
        let quota = |shape: &S| {
            let known = self.quotas().find(|(known, _)| *known == shape);
            known.map_or(0, |(_, quota)| quota)
        };
        let is_surplus = |shape: &&S| count(there, shape) > quota(shape);
        there.iter().position(is_surplus)
    }
}

fn count<S: PartialEq>(there: &[&S], shape: &S) -> usize {
    there.iter().filter(|one| **one == shape).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refs(shapes: &[u8]) -> Vec<&u8> {
        shapes.iter().collect()
    }

    /// What is kept after these were asked for, by who makes what is missing and ends what is too
    /// many.
    fn kept(limit: usize, asked: &[u8]) -> Vec<u8> {
        let mut shapes = Shapes::new(limit);
        let mut there: Vec<u8> = Vec::new();
        for shape in asked {
            shapes.ask(*shape);
            while let Some(at) = shapes.surplus(&refs(&there)) {
                there.remove(at);
            }
            while let Some(missing) = shapes.missing(&refs(&there)) {
                there.push(missing);
                assert!(there.len() <= limit, "{there:?} of {limit}");
            }
        }
        there.sort_unstable();
        there
    }

    #[test]
    fn those_asked_for_last_are_kept() {
        assert_eq!(kept(0, &[1, 2]), [0; 0]);
        assert_eq!(kept(2, &[1]), [1, 1]);
        assert_eq!(kept(2, &[1, 2]), [1, 2]);
        assert_eq!(kept(2, &[1, 2, 3]), [2, 3]);
        assert_eq!(kept(2, &[1, 2, 1, 3]), [1, 3]);
        assert_eq!(kept(3, &[1, 2]), [1, 2, 2]);
    }

    #[test]
    fn what_is_forgotten_makes_room() {
        let mut shapes = Shapes::new(2);
        shapes.ask(1);
        shapes.ask(2);
        shapes.forget(&1);
        assert_eq!(shapes.surplus(&[&1, &2]), Some(0));
        assert_eq!(shapes.missing(&[&2]), Some(2));
        shapes.forget(&2);
        assert_eq!(shapes.missing(&[]), None);
    }

    proptest! {
        #[test]
        fn there_are_as_many_as_there_may_be(
            limit in 0_usize..6,
            asked in proptest::collection::vec(0_u8..5, 1..20),
        ) {
            let kept = kept(limit, &asked);
            prop_assert_eq!(kept.len(), limit);
            prop_assert!(limit == 0 || kept.contains(asked.last().unwrap()));
        }
    }
}
