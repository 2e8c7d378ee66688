//! Volumes of full VMs that run: real guests write while their volumes are attached, detached, grown, kept, backed
//! up and merged, and while the node or QEMU is killed in between. Every write that a guest was told to be durable
//! is there in what is read back, byte for byte.

mod agents;
mod backups;
mod dropped;
mod failing;
mod guest;
mod killed;
mod killed_backups;
mod merged;
mod refused;
mod stopped;
mod victim;
mod written;

use aleph_executor::volumes::BackendChoice;
use aleph_testkit::FailingDisk;
use guest::trial;
use libtest_mimic::Arguments;

fn main() {
    if victim::is_one(killed::change) {
        return;
    }
    let chains = trial(
        "alone_what_a_guest_wrote_is_there_over_every_change_of_chains",
        || written::what_a_guest_wrote_is_there_over_every_change(BackendChoice::Qcow2),
    );
    let fails = trial(
        "alone_a_guest_is_told_that_its_disk_fails_and_goes_on",
        failing::a_guest_is_told_that_its_disk_fails_and_goes_on,
    );
    let trials = vec![
        trial(
            "alone_what_a_guest_wrote_is_there_over_every_change_of_files",
            || written::what_a_guest_wrote_is_there_over_every_change(BackendChoice::Files),
        ),
        // The nodes that are killed keep chains, too.
        match std::env::var_os("ALEPH_DRILL_ROUNDS") {
            Some(_) => chains,
            None => chains
                .with_kind("only with make drill")
                .with_ignored_flag(true),
        },
        trial(
            "alone_a_node_that_is_killed_in_every_step_loses_nothing",
            killed::a_node_that_is_killed_in_every_step_loses_nothing,
        ),
        trial(
            "alone_what_a_guest_wrote_is_there_where_it_drops_its_disk",
            dropped::what_a_guest_wrote_is_there_where_it_drops_its_disk,
        ),
        trial(
            "alone_a_node_that_is_killed_while_it_backs_up_loses_nothing",
            killed_backups::a_node_that_is_killed_while_it_backs_up_loses_nothing,
        ),
        match FailingDisk::missing() {
            None => fails,
            Some(why) => fails.with_kind(why).with_ignored_flag(true),
        },
        trial(
            "alone_states_are_kept_for_ever_and_none_is_refused",
            merged::states_are_kept_for_ever_and_none_is_refused,
        ),
        trial(
            "alone_a_node_that_is_killed_while_it_merges_loses_nothing",
            merged::a_node_that_is_killed_while_it_merges_loses_nothing,
        ),
        trial(
            "alone_what_cannot_be_changed_is_refused",
            refused::what_cannot_be_changed_is_refused,
        ),
        trial(
            "alone_what_agents_and_guests_do_not_do_holds_nothing_up",
            agents::what_agents_and_guests_do_not_do_holds_nothing_up,
        ),
        trial(
            "alone_a_vm_that_ends_before_its_disks_are_made_leaves_nothing",
            stopped::a_vm_that_ends_before_its_disks_are_made_leaves_nothing,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
