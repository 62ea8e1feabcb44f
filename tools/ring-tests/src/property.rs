// SPDX-License-Identifier: MIT
//! Property tests: random changes, reports and collections of two queues against
//! ones that are simple enough to be right.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use kevent::Event;
use proptest::prelude::*;

use crate::abi;
use crate::consumer::{Backend, Consumer, Slots};
use crate::events::{After, Pending, Post, Refused, Seen, Terms, Trigger, Update};
use crate::kernel::{claim_at, level, terms, whole, Item, Kernel, Plan};

/// What the value of an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bits,
    Count,
    Value,
}

impl Kind {
    fn update(self, value: u32) -> Update {
        match self {
            Self::Bits => Update::Bits(value),
            Self::Count => Update::Count(value),
            Self::Value => Update::Value(value),
        }
    }

    /// What an event says after `value` was added to `old`.
    fn sum(self, old: u32, value: u32) -> u32 {
        const MAX: u64 = abi::KEVENT_COUNT_MAX as u64;
        match self {
            Self::Bits => old | value,
            Self::Count => {
                let sum = (u64::from(old) & MAX) + (u64::from(value) & MAX);
                sum.min(MAX) as u32 | (old | value) & abi::KEVENT_TIMER_CANCELED
            }
            Self::Value => value,
        }
    }
}

/// How a registration reports.
#[derive(Clone, Copy, Debug)]
struct Mode {
    level: bool,
    after: After,
    narrow: bool,
    disabled: bool,
}

impl Mode {
    fn terms(&self, name: u64, kind: Kind) -> Terms {
        let terms = match self.level && kind == Kind::Bits {
            true => level(name),
            false => terms(name),
        };
        Terms {
            after: self.after,
            interest: if self.narrow { 0xff } else { terms.interest },
            ..terms
        }
    }
}

/// A step.  Sources are taken modulo how many there are, and so on.
#[derive(Clone, Debug)]
enum Step {
    Add(Kind, Mode),
    Remove(usize),
    Modify(usize, Mode),
    Disable(usize),
    Enable(usize),
    Post(usize, u32),
    /// Reports something for a registration that has ended.
    Haunt(usize),
    /// Whether what a file reports is so when the kernel looks again.
    Look(usize, bool),
    /// Reserves an id that is filled, or given back, later on.
    Reserve(Kind, Mode),
    Fill(usize, u32),
    Unreserve(usize),
    /// Takes a source to the other queue.
    Move(usize),
    /// One of two consumers claims, up to its limit.
    Claim(usize),
    /// One of them claims, or calls the kernel if there is nothing.
    Poll(usize),
    /// Collects through the kernel.
    Collect(usize),
    Count(u32),
    /// Claims what is in any slot of any set, without regard to the order.
    Snatch(usize, u32),
    Grow,
    Retire,
    Reap,
    Check,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![4 => Just(Kind::Bits), 1 => Just(Kind::Count), 1 => Just(Kind::Value)]
}

fn mode() -> impl Strategy<Value = Mode> {
    let after =
        prop_oneof![4 => Just(After::Stay), 1 => Just(After::Disable), 1 => Just(After::End)];
    let weighted = prop::bool::weighted;
    (weighted(0.3), after, any::<bool>(), weighted(0.1)).prop_map(
        |(level, after, narrow, disabled)| Mode {
            level,
            after,
            narrow,
            disabled,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![
        Just(1),
        Just(2),
        1u32..0x1_0000,
        0x7fff_0000u32..=0x8000_0001
    ];
    let number = any::<usize>;
    prop_oneof![
        4 => (kind(), mode()).prop_map(|(kind, mode)| Step::Add(kind, mode)),
        2 => number().prop_map(Step::Remove),
        1 => (number(), mode()).prop_map(|(source, mode)| Step::Modify(source, mode)),
        1 => number().prop_map(Step::Disable),
        2 => number().prop_map(Step::Enable),
        16 => (number(), value.clone()).prop_map(|(source, value)| Step::Post(source, value)),
        1 => number().prop_map(Step::Haunt),
        1 => (number(), any::<bool>()).prop_map(|(source, so)| Step::Look(source, so)),
        1 => (kind(), mode()).prop_map(|(kind, mode)| Step::Reserve(kind, mode)),
        1 => (number(), value).prop_map(|(place, value)| Step::Fill(place, value)),
        1 => number().prop_map(Step::Unreserve),
        1 => number().prop_map(Step::Move),
        4 => (0..2usize).prop_map(Step::Claim),
        4 => (0..2usize).prop_map(Step::Poll),
        2 => (1..5usize).prop_map(Step::Collect),
        1 => (0..9u32).prop_map(Step::Count),
        1 => (number(), any::<u32>()).prop_map(|(set, slot)| Step::Snatch(set, slot)),
        1 => Just(Step::Grow),
        1 => Just(Step::Retire),
        1 => Just(Step::Reap),
        1 => Just(Step::Check),
    ]
}

/// Steps that keep the promise that no event waits, as often as can be.
fn orderly_step() -> impl Strategy<Value = Step> {
    let mode = |after| Mode {
        level: false,
        after,
        narrow: false,
        disabled: false,
    };
    let after = prop_oneof![3 => Just(After::Stay), 1 => Just(After::End)];
    let number = any::<usize>;
    prop_oneof![
        6 => after.prop_map(move |after| Step::Add(Kind::Bits, mode(after))),
        3 => number().prop_map(Step::Remove),
        8 => number().prop_map(|source| Step::Post(source, 1)),
        1 => number().prop_map(Step::Move),
        1 => (0..2usize).prop_map(Step::Claim),
        1 => (0..2usize).prop_map(Step::Poll),
        1 => (1..5usize).prop_map(Step::Collect),
        1 => (0..9u32).prop_map(Step::Count),
    ]
}

/// A registration.
#[derive(Clone, Copy, Debug)]
struct Source {
    id: u32,
    name: u64,
    kind: Kind,
    terms: Terms,
    so: bool,
    /// What it counted, if it is disabled.
    held: Option<u32>,
}

impl Source {
    fn item(&self) -> Item {
        Item {
            so: self.so,
            counts: self.kind != Kind::Bits,
        }
    }
}

/// What is to come: names, and values in the order of their events.
#[derive(Clone)]
struct Reference {
    sources: Vec<Source>,
    /// Registrations that have ended: ids and names.
    ended: Vec<(u32, u64)>,
    /// Reserved ids.
    reserved: Vec<(u32, Kind, Mode)>,
    /// The events of the ring, and those that wait.
    pending: VecDeque<(u64, u32)>,
    /// The level-triggered ones that may be so.
    ready: VecDeque<u64>,
    turn: Trigger,
}

impl Reference {
    fn new() -> Self {
        Self {
            sources: Vec::new(),
            ended: Vec::new(),
            reserved: Vec::new(),
            pending: VecDeque::new(),
            ready: VecDeque::new(),
            turn: Trigger::Edge,
        }
    }

    fn source(&self, name: u64) -> &Source {
        self.sources.iter().find(|it| it.name == name).unwrap()
    }

    /// The edge-triggered registrations.
    fn edges(&self) -> usize {
        let registered = self.sources.iter().map(|it| it.terms.trigger);
        let reserved = self.reserved.iter().map(|it| it.1.trigger(&it.2));
        let edge = |trigger: &Trigger| *trigger == Trigger::Edge;
        registered.chain(reserved).filter(edge).count()
    }

    fn event(&mut self, name: u64) -> Option<&mut u32> {
        let event = self.pending.iter_mut().find(|event| event.0 == name);
        event.map(|event| &mut event.1)
    }

    /// Takes back what was reported of a source.
    fn withdraw(&mut self, index: usize) -> Pending {
        let Source {
            name, held, terms, ..
        } = self.sources[index];
        let event = self.event(name).copied();
        self.pending.retain(|event| event.0 != name);
        let ready = self.ready.contains(&name);
        self.ready.retain(|ready| *ready != name);
        match (held, event, ready) {
            (None, None, false) => Pending::Nothing,
            (None, Some(value), false) => Pending::Event(value),
            (None, None, true) => Pending::Event(terms.interest),
            (Some(held), None, false) => Pending::Disabled(held),
            impossible => panic!("{impossible:?}"),
        }
    }

    /// Reports something; tells what the kernel has to say of it.
    fn post(&mut self, index: usize, value: u32) -> Post {
        let Source {
            name,
            kind,
            terms,
            held,
            ..
        } = self.sources[index];
        let value = match kind {
            Kind::Bits => value & terms.interest,
            Kind::Count | Kind::Value => value,
        };
        if value == 0 {
            return Post::Nothing;
        }
        if let Some(held) = held {
            if kind != Kind::Bits {
                self.sources[index].held = Some(kind.sum(held, value));
            }
            return Post::Nothing;
        }
        if terms.trigger == Trigger::Level {
            if self.ready.contains(&name) {
                return Post::Merged;
            }
            self.ready.push_back(name);
        } else {
            if let Some(old) = self.event(name) {
                *old = kind.sum(*old, value);
                return Post::Merged;
            }
            self.pending.push_back((name, kind.sum(0, value)));
        }
        Post::New
    }

    /// The event of a source was claimed.
    fn claimed(&mut self, name: u64) {
        let index = self.sources.iter().position(|it| it.name == name).unwrap();
        match self.sources[index].terms.after {
            After::Stay => {}
            After::Disable => self.sources[index].held = Some(0),
            After::End => {
                let source = self.sources.swap_remove(index);
                self.ended.push((source.id, name));
            }
        }
    }

    /// Takes what was claimed from the ring in order.  If the kernel looked before,
    /// it has forgotten what is not so.
    fn claim(&mut self, events: &[Event], looked: bool) {
        for event in events {
            whole(event);
            let there =
                |it: &(u64, u32)| !looked || it.0 == event.user_data || self.source(it.0).so;
            let forgotten = self.pending.iter().take_while(|it| !there(it)).count();
            self.pending.drain(..forgotten);
            let got = Some((event.user_data, event.value));
            assert_eq!(self.pending.pop_front(), got);
            self.claimed(event.user_data);
        }
    }

    /// What the kernel collects.
    fn collect(&mut self, max: usize) -> Vec<(u64, u32)> {
        let mut level = self.ready.clone();
        let mut events = Vec::new();
        // Within one call, what is looked at and not so has had its turn.
        let mut turn = self.turn;
        while events.len() < max {
            let posted = self.pending.front().copied();
            match (level.front().copied(), posted) {
                (Some(name), posted) if turn == Trigger::Level || posted.is_none() => {
                    turn = Trigger::Edge;
                    let source = *self.source(name);
                    level.pop_front();
                    self.ready.retain(|ready| *ready != name);
                    if source.so {
                        events.push((name, source.terms.interest));
                        self.turn = Trigger::Edge;
                        if source.terms.after == After::Stay {
                            self.ready.push_back(name);
                        }
                        self.claimed(name);
                    }
                }
                (_, Some((name, value))) => {
                    turn = Trigger::Level;
                    self.pending.pop_front();
                    if self.source(name).so {
                        events.push((name, value));
                        self.turn = Trigger::Level;
                        self.claimed(name);
                    }
                }
                (_, None) => break,
            }
        }
        events
    }

    /// Takes what the kernel collected, when it is not known in which order the
    /// kinds come.
    fn collected(&mut self, events: &[Event]) {
        for event in events {
            whole(event);
            let name = event.user_data;
            let source = *self.source(name);
            assert!(source.so);
            if source.terms.trigger == Trigger::Level {
                let place = self.ready.iter().position(|ready| *ready == name);
                self.ready.remove(place.unwrap());
                assert_eq!(event.value, source.terms.interest);
                if source.terms.after == After::Stay {
                    self.ready.push_back(name);
                }
                self.turn = Trigger::Edge;
            } else {
                let so = |event: &(u64, u32)| self.source(event.0).so;
                let place = self.pending.iter().position(so).unwrap();
                let got = (name, event.value);
                assert_eq!(self.pending.remove(place), Some(got));
                self.turn = Trigger::Level;
            }
            self.claimed(name);
        }
    }

    /// Forgets what the kernel has found not to be so.
    fn forget(&mut self, kernel: &Kernel) {
        let sources = self.sources.clone();
        let there = |name: u64| {
            let source = sources.iter().find(|it| it.name == name).unwrap();
            source.so || kernel.seen(source.id) != Some(Seen::Idle)
        };
        self.pending.retain(|event| there(event.0));
        self.ready.retain(|name| there(*name));
    }
}

impl Kind {
    fn trigger(self, mode: &Mode) -> Trigger {
        mode.terms(0, self).trigger
    }
}

const LIMITS: [usize; 2] = [2, 64];

/// A queue.
struct Side {
    kernel: Arc<Kernel>,
    consumers: [Consumer<Arc<Kernel>>; 2],
    reference: Reference,
    overcommit: bool,
    /// Whether something was claimed out of order.
    disordered: bool,
    /// Whether an event was taken back from the ring, to be posted anew.
    reposted: bool,
}

impl Side {
    fn new(plan: Plan) -> Self {
        let kernel = plan.make();
        Self {
            consumers: LIMITS.map(|limit| kernel.consumer(limit)),
            kernel,
            reference: Reference::new(),
            overcommit: plan.overcommit,
            disordered: false,
            reposted: false,
        }
    }

    fn source(&self, number: usize) -> Option<usize> {
        number.checked_rem(self.reference.sources.len())
    }

    fn waiting(&self) -> usize {
        self.kernel.locked(|queue| queue.waiting()) as usize
    }

    /// The sets of slots, from the oldest to the one that takes new events.
    fn sets(&self) -> Vec<u32> {
        let rings = self.kernel.locked(|queue| queue.rings());
        let bits = (0..32).map(|bit| 1 << bit);
        bits.filter(|slots| rings & slots != 0).collect()
    }

    /// How many slots hold cancelled events that nobody has claimed.
    fn cancelled(&self, slots: u32) -> usize {
        let set = self.kernel.set(slots).unwrap();
        let cancelled = |index: &u32| {
            let word = set.slot(*index).word.load(Relaxed);
            word & abi::KEVENT_WORD_READY != 0 && abi::word_value(word) == 0
        };
        (0..slots).filter(cancelled).count()
    }

    /// Checks that a slot was refused if and only if there is none.
    fn judge<T>(&self, trigger: Trigger, full: bool, result: &Result<T, Refused>) {
        let refused = match result {
            Ok(_) => false,
            Err(Refused::NoSlot) => true,
            Err(refused) => panic!("{refused:?}"),
        };
        if trigger == Trigger::Level || self.overcommit {
            assert!(!refused);
        } else if self.disordered {
            // It may not know of all slots that are free again.
            assert!(refused || !full);
        } else {
            assert_eq!(refused, full);
        }
    }

    /// Whether each slot is reserved or holds a cancelled event.
    fn full(&self) -> bool {
        let slots = self.kernel.locked(|queue| queue.slots());
        self.reference.edges() + self.cancelled(slots) >= slots as usize
    }

    fn reserve(&mut self, kind: Kind, mode: &Mode) -> Option<u32> {
        let full = self.full();
        let trigger = kind.trigger(mode);
        let result = self.kernel.reserve(trigger);
        self.judge(trigger, full, &result);
        result.ok()
    }

    /// Registers where an id was reserved.
    fn fill(&mut self, id: u32, source: Source, pending: Pending) {
        let source = Source {
            id,
            held: match pending {
                Pending::Disabled(held) => Some(held),
                _ => None,
            },
            ..source
        };
        let fill = |queue: &mut crate::kernel::Queue| {
            queue.fill(id, source.terms, source.item(), pending);
        };
        self.kernel.locked(fill);
        self.reference.sources.push(source);
        if let Pending::Event(value) = pending {
            self.post(self.reference.sources.len() - 1, value);
        }
    }

    fn post(&mut self, index: usize, value: u32) {
        let Source { id, kind, .. } = self.reference.sources[index];
        let expected = self.reference.post(index, value);
        let mut post = self.kernel.report(id, kind.update(value));
        if post == Post::Waits {
            assert_eq!(self.kernel.seen(id), Some(Seen::Waiting));
            post = Post::New;
        }
        assert_eq!(post, expected);
    }

    /// Ends a registration and gives what it had to say.
    fn take(&mut self, index: usize) -> (Source, Pending) {
        let pending = self.reference.withdraw(index);
        let source = self.reference.sources.swap_remove(index);
        assert_eq!(self.kernel.remove(source.id), Some(pending));
        (source, pending)
    }

    fn modify(&mut self, index: usize, mode: &Mode, name: u64) {
        let full = self.full();
        let old = self.reference.sources[index];
        let posted = self.kernel.seen(old.id) == Some(Seen::Posted);
        let terms = mode.terms(name, old.kind);
        let trigger = match old.terms.trigger {
            Trigger::Edge => Trigger::Level, // It has got a slot.
            Trigger::Level => terms.trigger,
        };
        let result = self.kernel.modify(old.id, terms, !mode.disabled);
        self.judge(trigger, full, &result);
        let Ok(pending) = result else {
            return;
        };
        assert_eq!(pending, self.reference.withdraw(index));
        self.reposted |= posted;
        self.reference.sources[index] = Source {
            name,
            terms,
            held: mode.disabled.then_some(0),
            ..old
        };
    }

    fn disable(&mut self, index: usize) {
        let Source { id, kind, .. } = self.reference.sources[index];
        self.reposted |= self.kernel.seen(id) == Some(Seen::Posted);
        let pending = self.reference.withdraw(index);
        assert_eq!(self.kernel.disable(id), Ok(pending));
        self.reference.sources[index].held = Some(match pending {
            Pending::Disabled(held) => held,
            Pending::Event(value) if kind != Kind::Bits => value,
            _ => 0,
        });
    }

    fn enable(&mut self, index: usize) {
        let id = self.reference.sources[index].id;
        let held = self.reference.sources[index].held.take().unwrap_or(0);
        assert_eq!(self.kernel.enable(id), Ok(held));
        if held != 0 {
            self.post(index, held);
        }
    }

    /// A registration that has ended does not come back.
    fn haunt(&self, number: usize) {
        let ended = &self.reference.ended;
        if let Some(index) = number.checked_rem(ended.len()) {
            let id = ended[index].0;
            let terms = level(0);
            match number % 4 {
                0 => assert_eq!(self.kernel.post(id, 1), Post::Ended),
                1 => assert_eq!(self.kernel.modify(id, terms, true), Err(Refused::Ended)),
                2 => assert_eq!(self.kernel.disable(id), Err(Refused::Ended)),
                _ => assert_eq!(self.kernel.enable(id), Err(Refused::Ended)),
            }
            assert_eq!(self.kernel.seen(id), None);
        }
    }

    fn claim(&mut self, which: usize) {
        self.consumers[which].claim();
        let events = self.consumers[which].events();
        self.reference.claim(events, false);
        let enough = events.len() == LIMITS[which];
        // What it left is not in the ring.
        assert!(enough || self.reference.pending.len() == self.waiting());
    }

    fn poll(&mut self, which: usize) {
        // Then the consumer needs no help.
        let so = self.reference.sources.iter().all(|it| it.so);
        let plain = self.kernel.flags() == 0 && so && !self.disordered;
        let consumer = &mut self.consumers[which];
        let before = consumer.stats;
        consumer.poll(None).unwrap();
        let collected = (consumer.stats.collected - before.collected) as usize;
        let alone = consumer.stats.collects == before.collects;
        let events = consumer.events().to_vec();
        self.reference.collected(&events[..collected]);
        self.reference.claim(&events[collected..], !alone);
        if !alone {
            self.reference.forget(&self.kernel);
        }
        assert!(events.len() <= LIMITS[which]);
        // If there is something that is so, there is some of it.
        assert!(!events.is_empty() || self.reference.pending.is_empty());
        assert!(!events.is_empty() || self.reference.ready.is_empty());
        assert!(alone || !plain);
    }

    fn collect(&mut self, max: usize) {
        let plain = self.sets().iter().all(|slots| self.cancelled(*slots) == 0);
        let mut expected = self.reference.clone();
        let due = expected.collect(max);
        let events = self.kernel.collect(max);
        if plain {
            let pairs: Vec<_> = events.iter().map(|it| (it.user_data, it.value)).collect();
            assert_eq!(pairs, due);
            self.reference = expected;
        } else {
            // Cancelled events may stand between a waiting event and its turn.
            assert_eq!(events.len(), due.len());
            self.reference.collected(&events);
            self.reference.forget(&self.kernel);
        }
    }

    fn count(&self, limit: u32) {
        let due = self.reference.pending.len() + self.reference.ready.len();
        assert_eq!(self.kernel.count(limit), limit.min(due as u32));
    }

    fn snatch(&mut self, set: usize, slot: u32) {
        let sets = self.sets();
        let set = self.kernel.set(sets[set % sets.len()]).unwrap();
        let slot = set.slot(slot % set.count());
        self.disordered |= slot.word.load(Relaxed) & abi::KEVENT_WORD_READY != 0;
        if let Some(event) = claim_at(slot) {
            whole(&event);
            let name = event.user_data;
            assert_eq!(self.reference.event(name), Some(&mut event.value.clone()));
            self.reference.pending.retain(|event| event.0 != name);
            self.reference.claimed(name);
        }
    }

    fn reap(&mut self) {
        for name in self.kernel.reap() {
            let index = self.reference.ended.iter().position(|it| it.1 == name);
            self.reference.ended.swap_remove(index.unwrap());
        }
    }

    /// Each registration is what it has to be.
    fn check(&mut self) {
        for source in &self.reference.sources {
            let pending = self.reference.pending.iter();
            let expected: &[Seen] = if source.held.is_some() {
                &[Seen::Disabled]
            } else if self.reference.ready.contains(&source.name) {
                &[Seen::Ready]
            } else if pending.clone().any(|event| event.0 == source.name) {
                &[Seen::Posted, Seen::Waiting]
            } else {
                &[Seen::Idle]
            };
            let seen = self.kernel.seen(source.id).unwrap();
            assert!(expected.contains(&seen), "{source:?}: {seen:?}");
        }
        self.kernel.settle_all();
        self.reap();
        assert!(self.reference.ended.is_empty());
        let live = self.reference.sources.len() + self.reference.reserved.len();
        assert_eq!(self.kernel.locked(|queue| queue.live()), live as u32);
    }

    /// What is so after each step.
    fn invariants(&self) {
        let (waiting, ready, rings, posted) = self.kernel.locked(|queue| {
            let ready = queue.level_ready() as usize;
            (
                queue.waiting(),
                ready,
                queue.rings(),
                queue.posted_at_most(),
            )
        });
        let flags = self.kernel.flags();
        assert_eq!(flags & abi::KEVENT_RING_OVERFLOW != 0, waiting > 0);
        assert_eq!(flags & abi::KEVENT_RING_LEVEL_READY != 0, ready > 0);
        assert_eq!(ready, self.reference.ready.len());
        assert_eq!(rings, self.kernel.rings());
        let waiting = waiting as usize;
        assert!(waiting <= self.reference.pending.len());
        assert!(posted as usize >= self.reference.pending.len() - waiting);
        assert!(waiting == 0 || self.overcommit || self.disordered || self.reposted);
    }

    fn finish(&mut self) {
        for source in &mut self.reference.sources {
            source.so = true;
            let item = source.item();
            let set = |queue: &mut crate::kernel::Queue| *queue.item_mut(source.id).unwrap() = item;
            self.kernel.locked(set);
        }
        while !self.reference.pending.is_empty() {
            self.poll(0);
        }
        self.check();
        let level = |source: &&Source| source.terms.trigger == Trigger::Level;
        let ready = self.reference.ready.len();
        assert!(ready <= self.reference.sources.iter().filter(level).count());
        assert_eq!(self.kernel.collect(999).len(), ready);
        // All but the last set go.
        self.kernel.retire();
        assert_eq!(self.sets().len(), 1);
    }
}

struct Test {
    sides: [Side; 2],
    names: u64,
    /// Whether all is done that keeps events from waiting.
    orderly: bool,
}

impl Test {
    fn new(plans: [Plan; 2], orderly: bool) -> Self {
        Self {
            sides: plans.map(Side::new),
            names: 0,
            orderly,
        }
    }

    fn new_source(&mut self, kind: Kind, mode: &Mode) -> Source {
        self.names += 1;
        Source {
            id: u32::MAX,
            name: self.names,
            kind,
            terms: mode.terms(self.names, kind),
            so: true,
            held: None,
        }
    }

    fn step(&mut self, which: usize, step: &Step) {
        let side = &mut self.sides[which];
        match *step {
            Step::Add(kind, mode) => {
                if let Some(id) = side.reserve(kind, &mode) {
                    let source = self.new_source(kind, &mode);
                    let pending = match mode.disabled {
                        true => Pending::Disabled(0),
                        false => Pending::Nothing,
                    };
                    self.sides[which].fill(id, source, pending);
                }
            }
            Step::Remove(number) => {
                if let Some(index) = side.source(number) {
                    side.take(index);
                }
            }
            Step::Modify(number, mode) => {
                if let Some(index) = side.source(number) {
                    let id = side.reference.sources[index].id;
                    if !self.orderly || side.kernel.seen(id) != Some(Seen::Posted) {
                        self.names += 1;
                        side.modify(index, &mode, self.names);
                    }
                }
            }
            Step::Disable(number) => {
                if let Some(index) = side.source(number) {
                    let id = side.reference.sources[index].id;
                    if !self.orderly || side.kernel.seen(id) != Some(Seen::Posted) {
                        side.disable(index);
                    }
                }
            }
            Step::Enable(number) => {
                if let Some(index) = side.source(number) {
                    side.enable(index);
                }
            }
            Step::Post(number, value) => {
                if let Some(index) = side.source(number) {
                    side.post(index, value);
                }
            }
            Step::Haunt(number) => side.haunt(number),
            Step::Look(number, so) => {
                if let Some(index) = side.source(number) {
                    let source = &mut side.reference.sources[index];
                    source.so = so || source.kind != Kind::Bits;
                    let (id, item) = (source.id, source.item());
                    let set =
                        |queue: &mut crate::kernel::Queue| *queue.item_mut(id).unwrap() = item;
                    side.kernel.locked(set);
                }
            }
            Step::Reserve(kind, mode) => {
                if let Some(id) = side.reserve(kind, &mode) {
                    side.reference.reserved.push((id, kind, mode));
                }
            }
            Step::Fill(number, value) => {
                if let Some(index) = number.checked_rem(side.reference.reserved.len()) {
                    let (id, kind, mode) = side.reference.reserved.swap_remove(index);
                    let source = self.new_source(kind, &mode);
                    let pending = match (mode.disabled, kind) {
                        (false, _) => Pending::Event(value),
                        (true, Kind::Bits) => Pending::Disabled(0),
                        (true, _) => Pending::Disabled(value),
                    };
                    self.sides[which].fill(id, source, pending);
                }
            }
            Step::Unreserve(number) => {
                if let Some(index) = number.checked_rem(side.reference.reserved.len()) {
                    let (id, kind, mode) = side.reference.reserved.swap_remove(index);
                    let trigger = kind.trigger(&mode);
                    side.kernel.locked(|queue| queue.unreserve(id, trigger));
                }
            }
            Step::Move(number) => {
                if let Some(index) = side.source(number) {
                    let Source { kind, terms, .. } = side.reference.sources[index];
                    let mode = Mode {
                        level: terms.trigger == Trigger::Level,
                        after: terms.after,
                        narrow: false,
                        disabled: false,
                    };
                    if let Some(id) = self.sides[1 - which].reserve(kind, &mode) {
                        let (source, pending) = self.sides[which].take(index);
                        self.sides[1 - which].fill(id, source, pending);
                    }
                }
            }
            Step::Claim(consumer) => side.claim(consumer),
            Step::Poll(consumer) => side.poll(consumer),
            Step::Collect(max) => side.collect(max),
            Step::Count(limit) => side.count(limit),
            Step::Snatch(set, slot) => {
                if !self.orderly {
                    side.snatch(set, slot);
                }
            }
            Step::Grow => {
                let slots = side.kernel.locked(|queue| queue.slots());
                assert!(!side.kernel.grow(slots));
                if slots < 64 {
                    assert!(side.kernel.grow(2 * slots));
                    assert_eq!(side.kernel.locked(|queue| queue.slots()), 2 * slots);
                }
            }
            Step::Retire => {
                side.kernel.retire();
            }
            Step::Reap => side.reap(),
            Step::Check => side.check(),
        }
        self.sides.iter().for_each(Side::invariants);
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    (0..4u32, prop::bool::weighted(0.3), 1..6u32).prop_map(|(log, overcommit, steps)| Plan {
        overcommit,
        steps,
        ..Plan::new(1 << log)
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever is added, removed and moved: if consumers claim in order, there
    /// is a slot for each event.
    #[test]
    fn reserved_slots_are_enough(
        logs in [0..4u32, 0..4u32],
        steps in prop::collection::vec((prop::bool::weighted(0.2), orderly_step()), 1..120),
    ) {
        let mut test = Test::new(logs.map(|log| Plan::new(1 << log)), true);
        for (which, step) in &steps {
            test.step(usize::from(*which), step);
            let waiting = test.sides.iter().map(Side::waiting).sum::<usize>();
            assert_eq!(waiting, 0);
        }
        test.sides.iter_mut().for_each(Side::finish);
    }

    #[test]
    fn the_queues_do_what_the_references_do(
        plans in [plan(), plan()],
        orderly in any::<bool>(),
        steps in prop::collection::vec((prop::bool::weighted(0.3), step()), 1..250),
    ) {
        let mut test = Test::new(plans, orderly);
        for (which, step) in &steps {
            test.step(usize::from(*which), step);
        }
        test.sides.iter_mut().for_each(Side::finish);
    }
}
