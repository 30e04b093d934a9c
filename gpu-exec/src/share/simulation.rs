//! Sessions at the board in a time of our own: what they get over ten seconds.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::board::{Board, CREDIT_NS, Member};
use crate::ledger::Slot;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// A program: kernels of so many nanoseconds, and a pause after each.
struct Program {
    slot: Slot,
    member: Member,
    kernel_ns: Vec<u64>,
    pause_ns: u64,
    ready_at: u64,
    ends_at: u64,
    launches: usize,
    got_ns: u64,
}

struct World {
    board: Arc<Board>,
    programs: Vec<Program>,
    now: u64,
    busy_ns: u64,
}

impl World {
    fn new() -> Self {
        Self {
            board: Arc::new(Board::create().unwrap()),
            programs: Vec::new(),
            now: 0,
            busy_ns: 0,
        }
    }

    fn add(&mut self, permille: u16, kernel_ns: &[u64], pause_ns: u64) -> &mut Program {
        let slot = Slot(self.programs.len() * 67);
        self.board.enter(slot, [(0, permille)]);
        self.programs.push(Program {
            slot,
            member: Member::new(self.board.clone(), slot),
            kernel_ns: kernel_ns.to_vec(),
            pause_ns,
            ready_at: self.now,
            ends_at: u64::MAX,
            launches: 0,
            got_ns: 0,
        });
        self.programs.last_mut().unwrap()
    }

    /// Lets time pass.
    fn run(&mut self, ns: u64) {
        let end = self.now + ns;
        while self.now < end {
            self.ask();
            let holder = self.programs.iter().position(|one| one.member.holds(0));
            match holder {
                Some(at) => self.run_kernel(at),
                // Nobody wants the device.
                None => {
                    let next = self
                        .programs
                        .iter()
                        .filter(|one| one.ends_at > one.ready_at);
                    self.now = next
                        .map(|one| one.ready_at)
                        .min()
                        .unwrap_or(end)
                        .max(self.now + 1);
                }
            }
        }
    }

    fn ask(&self) {
        for one in &self.programs {
            if one.ready_at <= self.now && self.now < one.ends_at {
                one.member.ask(0);
            }
        }
    }

    fn run_kernel(&mut self, at: usize) {
        let one = &mut self.programs[at];
        let ns = one.kernel_ns[one.launches % one.kernel_ns.len()];
        self.now += ns;
        self.busy_ns += ns;
        one.launches += 1;
        one.got_ns += ns;
        one.ready_at = self.now + one.pause_ns;
        one.member.charge(0, ns, 1);
        self.ask();
        let one = &self.programs[at];
        if one.ready_at > self.now || self.now >= one.ends_at || one.member.must_yield(0) {
            one.member.hand_on(0);
        }
    }

    /// What each has had since the last time, in thousandths of that.
    fn shares(&mut self) -> Vec<u64> {
        let busy = std::mem::take(&mut self.busy_ns).max(1);
        let share = |one: &mut Program| std::mem::take(&mut one.got_ns) * 1000 / busy;
        self.programs.iter_mut().map(share).collect()
    }
}

fn assert_shares(got: &[u64], want: &[u64]) {
    let near = got
        .iter()
        .zip(want)
        .all(|(got, want)| got.abs_diff(*want) <= 10);
    assert!(near, "got {got:?}, want {want:?}");
}

#[test]
fn busy_programs_get_their_shares() {
    for kernels in [
        [MS, MS],
        [3 * MS, MS / 10],
        [MS / 100, 20 * MS],
        [7 * MS, 40 * MS],
    ] {
        let mut world = World::new();
        world.add(250, &kernels[..1], 0);
        world.add(750, &kernels[1..], 0);
        world.run(10 * SECOND);
        assert_shares(&world.shares(), &[250, 750]);
        assert_eq!(world.now, world.now.max(10 * SECOND));
    }
}

#[test]
fn three_programs_with_kernels_of_many_lengths() {
    let mut world = World::new();
    world.add(200, &[MS, 5 * MS, MS / 3], 0);
    world.add(300, &[2 * MS, MS / 2], 0);
    world.add(500, &[4 * MS], 0);
    world.run(10 * SECOND);
    assert_shares(&world.shares(), &[200, 300, 500]);
}

#[test]
fn what_asked_for_no_share_gets_the_rest() {
    let mut world = World::new();
    world.add(300, &[MS], 0);
    world.add(1000, &[MS], 0);
    world.run(10 * SECOND);
    assert_shares(&world.shares(), &[300, 700]);
}

#[test]
fn the_share_of_an_idle_neighbour_is_used() {
    let mut world = World::new();
    world.add(250, &[2 * MS], 0);
    world.add(750, &[2 * MS], 0).ready_at = u64::MAX - 1;
    world.run(10 * SECOND);
    assert_eq!(world.busy_ns, 10 * SECOND, "never idle");
    assert_shares(&world.shares(), &[1000, 0]);
}

#[test]
fn a_program_that_waits_for_each_kernel_still_gets_its_share() {
    let mut world = World::new();
    world.add(250, &[2 * MS], MS / 5);
    world.add(750, &[2 * MS], 0);
    world.run(10 * SECOND);
    assert_shares(&world.shares(), &[250, 750]);
}

#[test]
fn what_a_program_cannot_use_goes_to_the_other() {
    let mut world = World::new();
    // 1 ms of work every 10 ms at most.
    world.add(500, &[MS], 9 * MS);
    world.add(500, &[MS], 0);
    world.run(10 * SECOND);
    let shares = world.shares();
    assert!(shares[0] > 80 && shares[1] > 890, "{shares:?}");
}

#[test]
fn a_pause_is_not_saved_up() {
    let mut world = World::new();
    world.add(500, &[MS], 0);
    world.add(500, &[MS], 0).ready_at = 5 * SECOND;
    world.run(5 * SECOND);
    world.shares();
    world.run(SECOND);
    let other = world.programs[1].got_ns;
    assert!(other <= SECOND / 2 + CREDIT_NS, "{other}");
}

#[test]
fn a_program_that_is_gone_leaves_the_device_to_the_others() {
    let mut world = World::new();
    world.add(250, &[MS], 0);
    world.add(250, &[MS], 0);
    world.add(500, &[MS], 0);
    world.run(SECOND);
    world.shares();
    let gone = &mut world.programs[2];
    gone.ends_at = 0;
    world.board.leave(gone.slot);
    let before = world.now;
    world.run(SECOND);
    assert_eq!(world.busy_ns, world.now - before, "never idle");
    assert_shares(&world.shares(), &[500, 500, 0]);
}

#[test]
fn one_very_long_kernel_is_paid_for_within_two_seconds() {
    let mut world = World::new();
    world.add(500, &[20 * SECOND, MS], 0);
    world.add(500, &[MS], 0);
    while world.programs[0].launches == 0 {
        world.run(MS);
    }
    world.shares();
    world.programs[0].kernel_ns = vec![MS];
    world.run(3 * SECOND);
    assert!(world.shares()[0] > 100, "not starved");
}
