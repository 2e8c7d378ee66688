//! Which layers of a chain to merge, as a pure function of what is known of them.
//!
//! Merged are layers that follow each other, from the one below the top down: what is above them is what a
//! guest wrote since. The new layer holds what they do, so a chain of `d` layers of which `n` are merged has
//! `d - n + 1` then.
//!
//! | what | why |
//! | --- | --- |
//! | nothing below [`DEEP`] layers | so that most volumes are never copied at all |
//! | at least [`LEAST`] layers at a time | so that not each snapshot copies |
//! | then each one more that has at most twice what was gathered so far | a large layer that was merged before is left where it is until those over it come near it: each byte is copied a few times in a volume's life, 7 times at most where 2,000 states are kept, while a chain that is always merged in whole copies it hundreds of times |
//! | one that stays, since a snapshot has it, counts twice there | it is there twice then |
//! | never the lowest | it is the disk as it was made, and by far the largest |
//! | not the state that was kept last ([`merge`](super::merge)), nor one that a backup from before this VM may know, as long as there is room over it | what changed since it is what the layers over it hold ([`reading`](super::reading)): without it the next backup reads everything |
//!
//! From [`PRESSED`] layers on such a layer goes, too: a backup that reads more is better than a snapshot that is
//! refused.

use super::backend::MAX_DEPTH;

/// From how many layers on a chain is merged.
pub(super) const DEEP: usize = MAX_DEPTH - 6;

/// From how many layers on also those are merged that a backup may know.
pub(super) const PRESSED: usize = MAX_DEPTH - 2;

/// How many layers are merged at a time at least.
pub(super) const LEAST: usize = 4;

/// What a layer without a byte costs all the same: its file, and the look at it.
const LEAST_BYTES: u64 = 1 << 20;

/// What is known of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// What it takes.
    pub(super) bytes: u64,
    /// Whether a backup may know it.
    pub(super) is_known: bool,
    /// Whether something else than the chain has it: a snapshot, or a copy of the volume.
    pub(super) is_kept: bool,
}

/// What is to be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// How many layers, from the one below the first on.
    pub(super) layers: usize,
    /// What they take together: the most that the new one can.
    pub(super) bytes: u64,
}

/// Which layers of a chain to merge, from the top down; `None` where it is well as it is. There are so many more
/// `above` it, which stay.
pub(super) fn plan(chain: &[Look], above: usize) -> Option<Plan> {
    let depth = chain.len() + above;
    if depth < DEEP {
        return None;
    }
    // Neither the top nor the lowest.
    let within = chain.get(1..chain.len().checked_sub(1)?)?;
    let until_known = within.iter().take_while(|layer| !layer.is_known).count();
    let most = match until_known < LEAST && depth >= PRESSED {
        true => within.len(),
        false => until_known,
    };
    let (mut layers, mut bytes, mut gathered, mut is_kept) = (0, 0_u64, 0_u64, false);
    for layer in within.iter().take(most) {
        // What is below one that stays does so, too.
        is_kept |= layer.is_kept;
        let takes = layer.bytes.max(LEAST_BYTES);
        let costs = takes.saturating_mul(if is_kept { 2 } else { 1 });
        if layers >= LEAST && costs > gathered.saturating_mul(2) {
            break;
        }
        layers += 1;
        bytes = bytes.saturating_add(layer.bytes);
        gathered = gathered.saturating_add(takes);
    }
    (layers >= LEAST).then_some(Plan { layers, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn layer(mib: u64) -> Look {
        Look {
            bytes: mib * MIB,
            is_known: false,
            is_kept: false,
        }
    }

    fn chain(sizes: &[u64]) -> Vec<Look> {
        sizes.iter().map(|mib| layer(*mib)).collect()
    }

    fn merged(sizes: &[u64]) -> Option<usize> {
        plan(&chain(sizes), 0).map(|plan| plan.layers)
    }

    #[test]
    fn short_chains_are_left_alone() {
        assert_eq!(merged(&[]), None);
        assert_eq!(merged(&[1; DEEP - 1]), None);
        assert_eq!(merged(&[1; DEEP]), Some(DEEP - 2));
    }

    #[test]
    fn what_is_large_stays_until_those_over_it_come_near_it() {
        assert_eq!(merged(&[0, 1, 1, 1, 1, 1, 1, 90, 90, 900]), Some(6));
        assert_eq!(merged(&[0, 9, 9, 9, 9, 9, 45, 90, 900, 999]), Some(7));
        // At least so many, whatever they have.
        assert_eq!(merged(&[0, 1, 1, 1, 90, 200, 700, 900, 950, 999]), Some(4));
    }

    #[test]
    fn what_a_backup_knows_stays_while_there_is_room() {
        let mut looks = chain(&[0; DEEP + 2]);
        looks[5].is_known = true;
        assert_eq!(plan(&looks, 0).unwrap().layers, 4);
        looks[4].is_known = true;
        assert_eq!(plan(&looks, 0), None);
        let mut looks = chain(&[0; PRESSED]);
        looks[2].is_known = true;
        assert_eq!(plan(&looks, 0).unwrap().layers, PRESSED - 2);
    }

    #[test]
    fn what_stays_counts_twice() {
        let mut looks = chain(&[0, 1, 1, 1, 1, 6, 1, 1, 1, 900]);
        assert_eq!(plan(&looks, 0).unwrap().layers, 8);
        looks[5].is_kept = true;
        assert_eq!(plan(&looks, 0).unwrap().layers, 4);
    }

    fn looks() -> impl Strategy<Value = Vec<Look>> {
        let look = (0_u64..1 << 40, any::<bool>(), any::<bool>());
        let look = look.prop_map(|(bytes, is_known, is_kept)| Look {
            bytes,
            is_known,
            is_kept,
        });
        prop::collection::vec(look, 0..=MAX_DEPTH)
    }

    proptest! {
        #[test]
        fn a_plan_is_within_the_chain_and_there_is_one_before_the_bound(chain in looks()) {
            let depth = chain.len();
            match plan(&chain, 0) {
                None => prop_assert!(depth < PRESSED),
                Some(Plan { layers, bytes }) => {
                    prop_assert!((LEAST..=depth - 2).contains(&layers));
                    let run = &chain[1..=layers];
                    prop_assert_eq!(bytes, run.iter().map(|layer| layer.bytes).sum::<u64>());
                    if depth < PRESSED {
                        prop_assert!(run.iter().all(|layer| !layer.is_known));
                    }
                }
            }
        }

        /// A volume whose state is kept again and again, with each layer that was merged as large as those
        /// that it holds: it never comes to the bound, and each byte is copied a few times.
        #[test]
        fn a_volume_that_is_kept_for_ever_is_copied_a_few_times(
            written in prop::collection::vec(0_u64..64, 1..600),
        ) {
            let mut chain = chain(&[0, 10_000]);
            let (mut copied, mut all) = (0, 0);
            for mib in written {
                chain[0].bytes = mib * MIB;
                all += mib.max(1) * MIB;
                chain.insert(0, layer(0));
                prop_assert!(chain.len() <= DEEP);
                if let Some(Plan { layers, bytes }) = plan(&chain, 0) {
                    copied += bytes;
                    chain.splice(1..=layers, [Look { bytes, ..layer(0) }]);
                }
            }
            prop_assert!(copied <= 8 * all, "{} of {}", copied, all);
        }
    }
}
