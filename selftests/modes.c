// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: modes.  One-shot, dispatch, enabled or not, add or modify; tags;
 * files that are always ready; and who is told: which of several queues, which
 * of several who wait.
 */
#include "kevent_util.h"

#include <sys/prctl.h>
#include <sys/un.h>

#define SLOTS 8

/*
 * What every mode has to do, whatever the source
 */

enum kind {
	FD_EDGE,
	FD_LEVEL,
	TIMER,			/* periodic */
	USER_COUNT,
	USER_FLAGS,
};

#define IDENT 0x123456789abcULL	/* of timers and user events */
#define TICK_MS 4
#define PORTION 3		/* how much one trigger counts */

/**
 * struct subject - what is registered
 * @kind: what it is
 * @by: how its events are collected
 * @q: where it is registered
 * @fd: if it is a file, an eventfd
 * @tag: of the registration
 * @triggered: if it is a count, what has to be reported next; if it is flags,
 *	how often they were changed, which is what they are
 */
struct subject {
	enum kind kind;
	enum collect_by by;
	struct kq *q;
	int fd;
	__u32 tag;
	__u32 triggered;
};

static bool is_fd(const struct subject *s)
{
	return s->kind == FD_EDGE || s->kind == FD_LEVEL;
}

static bool is_user(const struct subject *s)
{
	return s->kind == USER_COUNT || s->kind == USER_FLAGS;
}

static __u16 source_of(const struct subject *s)
{
	if (is_fd(s))
		return KEVENT_SOURCE_FD;
	return is_user(s) ? KEVENT_SOURCE_USER : KEVENT_SOURCE_TIMER;
}

static __u64 ident_of(const struct subject *s)
{
	return is_fd(s) ? s->fd : IDENT;
}

static __u32 mode_of(const struct subject *s)
{
	return s->kind == FD_LEVEL ? KEVENT_LEVEL : KEVENT_EDGE;
}

/* For KEVENT_OP_ADD, _MOD and _SET */
static int change(struct subject *s, __u16 op, __u32 flags, __u64 udata)
{
	const __u64 tick = TICK_MS * NSEC_PER_MSEC;
	struct ukevent c;
	int ret;

	switch (s->kind) {
	case FD_EDGE:
	case FD_LEVEL:
		c = kq_mode_change(op, s->fd, EPOLLIN, mode_of(s) | flags,
				   udata);
		break;
	case TIMER:
		c = kq_timer_change(op, IDENT, CLOCK_MONOTONIC, tick, tick,
				    flags, udata);
		break;
	case USER_COUNT:
		c = kq_user_change(op, IDENT, KEVENT_USER_COUNT, flags, udata);
		break;
	default:
		c = kq_user_change(op, IDENT, KEVENT_USER_FLAGS, flags, udata);
		break;
	}
	c.tag = s->tag;
	ret = kq_apply(s->q, c);
	/* Flags are what the change says, counts go on. */
	if (ret == 1 && (op == KEVENT_OP_ADD || s->kind == USER_FLAGS))
		s->triggered = 0;
	return ret;
}

/* For the operations that take nothing but the name */
static int named_op(const struct subject *s, __u16 op)
{
	return kq_op(s->q, source_of(s), op, ident_of(s), s->tag);
}

/* Makes something happen that is to be reported, now or when it is enabled. */
static int fire(struct subject *s)
{
	struct ukevent c;
	int ret;

	if (is_fd(s)) {
		signal_eventfd(s->fd);
		return 1;
	}
	if (s->kind == TIMER) {
		sleep_ms(3 * TICK_MS);
		return 1;
	}
	if (s->kind == USER_COUNT)
		c = kq_trigger_change(IDENT, PORTION, 0);
	else
		c = kq_trigger_change(IDENT, 0, KEVENT_NOTE_TRIGGER |
				      KEVENT_NOTE_FFCOPY | (s->triggered + 1));
	c.tag = s->tag;
	ret = kq_apply(s->q, c);
	if (ret == 1)
		s->triggered += s->kind == USER_COUNT ? PORTION : 1;
	return ret;
}

/* Nothing is so any more. */
static void quiet(const struct subject *s)
{
	if (is_fd(s))
		drain_eventfd(s->fd);
}

/* Does @ev say what was triggered? */
static bool value_ok(const struct subject *s, __u32 value)
{
	switch (s->kind) {
	case FD_EDGE:
	case FD_LEVEL:
		return value == EPOLLIN;
	case TIMER:
		return value && value <= KEVENT_COUNT_MAX;
	case USER_COUNT:
		return value == s->triggered;
	default:
		return value == (KEVENT_NOTE_TRIGGER | s->triggered);
	}
}

/* The next event has to be of the subject, and to say what was triggered. */
static void __want(struct __test_metadata *_metadata, int line,
		   struct subject *s, __u32 flags, __u64 udata)
{
	struct ukevent ev;

	ASSERT_EQ(1, kq_next(s->q, s->by, &ev))
		TH_LOG("line %d: no event", line);
	EXPECT_EQ(source_of(s), ev.source)
		TH_LOG("line %d", line);
	EXPECT_EQ(ident_of(s), ev.ident)
		TH_LOG("line %d", line);
	EXPECT_EQ(s->tag, ev.tag)
		TH_LOG("line %d", line);
	EXPECT_EQ(udata, ev.user_data)
		TH_LOG("line %d", line);
	EXPECT_EQ(s->by == BY_RING ? 0 : mode_of(s) | flags, ev.flags)
		TH_LOG("line %d", line);
	EXPECT_TRUE(value_ok(s, ev.events))
		TH_LOG("line %d: value %#x, triggered %#x", line, ev.events,
		       s->triggered);
	if (s->kind == USER_COUNT)
		s->triggered = 0;
}

/*
 * Nothing comes, and the header does not say that it would.  Timers alone go on
 * by themselves; what happens to the others happens at once.
 */
static void __want_silence(struct __test_metadata *_metadata, int line,
			   struct subject *s)
{
	if (s->kind == TIMER)
		sleep_ms(SETTLE_MS);
	__want_none(_metadata, line, s->q, BY_RING);
	__want_none(_metadata, line, s->q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&s->q->map))
		TH_LOG("line %d", line);
}

FIXTURE(mode) {
	struct kq q;
	struct subject s;
};

FIXTURE_VARIANT(mode) {
	enum kind kind;
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(mode, edge_ring) { FD_EDGE, BY_RING };
FIXTURE_VARIANT_ADD(mode, edge_call) { FD_EDGE, BY_SYSCALL };
FIXTURE_VARIANT_ADD(mode, level_call) { FD_LEVEL, BY_SYSCALL };
FIXTURE_VARIANT_ADD(mode, timer_ring) { TIMER, BY_RING };
FIXTURE_VARIANT_ADD(mode, timer_call) { TIMER, BY_SYSCALL };
FIXTURE_VARIANT_ADD(mode, count_ring) { USER_COUNT, BY_RING };
FIXTURE_VARIANT_ADD(mode, count_call) { USER_COUNT, BY_SYSCALL };
FIXTURE_VARIANT_ADD(mode, flags_ring) { USER_FLAGS, BY_RING };
FIXTURE_VARIANT_ADD(mode, flags_call) { USER_FLAGS, BY_SYSCALL };

FIXTURE_SETUP(mode)
{
	self->s = (struct subject) {
		.kind = variant->kind,
		.by = variant->by,
		.q = &self->q,
		.fd = open_eventfd(),
	};
	ASSERT_LE(0, self->s.fd);
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(mode)
{
	kq_close(&self->q);
}

#define add(flags, udata) change(&self->s, KEVENT_OP_ADD, flags, udata)
#define mod(flags, udata) change(&self->s, KEVENT_OP_MOD, flags, udata)
#define set(flags, udata) change(&self->s, KEVENT_OP_SET, flags, udata)
#define del() named_op(&self->s, KEVENT_OP_DEL)
#define enable() named_op(&self->s, KEVENT_OP_ENABLE)
#define disable() named_op(&self->s, KEVENT_OP_DISABLE)
#define want(flags, udata) \
	__want(_metadata, __LINE__, &self->s, flags, udata)
#define want_silence() __want_silence(_metadata, __LINE__, &self->s)

/*
 * One-shot
 */

TEST_F(mode, one_shot_ends_when_its_event_is_claimed)
{
	ASSERT_EQ(1, add(KEVENT_ONESHOT, 1));
	ASSERT_EQ(1, fire(&self->s));
	want(KEVENT_ONESHOT, 1);
	EXPECT_EQ(is_user(&self->s) ? -ENOENT : 1, fire(&self->s));
	want_silence();
	EXPECT_EQ(-ENOENT, mod(KEVENT_ONESHOT, 2));
	EXPECT_EQ(-ENOENT, enable());
	EXPECT_EQ(-ENOENT, disable());
	EXPECT_EQ(-ENOENT, del());
	want_silence();

	quiet(&self->s);
	ASSERT_EQ(1, add(0, 3));
	ASSERT_EQ(1, fire(&self->s));
	want(0, 3);
	EXPECT_EQ(1, del());
}

/* The kernel is not told that an event was claimed: it has to look. */
TEST_F(mode, one_shot_is_no_more_for_whoever_comes_first)
{
	const __u16 ops[] = {
		KEVENT_OP_DEL, KEVENT_OP_ENABLE, KEVENT_OP_DISABLE,
	};

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		ASSERT_EQ(1, add(KEVENT_ONESHOT, i));
		ASSERT_EQ(1, fire(&self->s));
		want(KEVENT_ONESHOT, i);
		EXPECT_EQ(-ENOENT, named_op(&self->s, ops[i]));
		quiet(&self->s);
	}
	ASSERT_EQ(1, add(KEVENT_ONESHOT, 10));
	ASSERT_EQ(1, fire(&self->s));
	want(KEVENT_ONESHOT, 10);
	EXPECT_EQ(-ENOENT, mod(0, 11));
	quiet(&self->s);
	ASSERT_EQ(1, set(KEVENT_ONESHOT, 12));
	ASSERT_EQ(1, fire(&self->s));
	want(KEVENT_ONESHOT, 12);
	ASSERT_EQ(1, set(0, 13));
	quiet(&self->s);
}

TEST_F(mode, one_shot_can_be_added_again_at_once)
{
	for (int i = 0; i < 3 * SLOTS; i++) {
		ASSERT_EQ(1, add(KEVENT_ONESHOT, i));
		ASSERT_EQ(-EEXIST, add(KEVENT_ONESHOT, i));
		if (self->s.kind != TIMER)
			ASSERT_EQ(1, fire(&self->s));
		want(KEVENT_ONESHOT, i);
		quiet(&self->s);
	}
	want_silence();
}

TEST_F(mode, one_shot_merges_until_its_event_is_claimed)
{
	ASSERT_EQ(1, add(KEVENT_ONESHOT, 1));
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, fire(&self->s));
	want(KEVENT_ONESHOT, 1);
	want_silence();
	EXPECT_EQ(-ENOENT, del());
}

TEST_F(mode, one_shot_that_is_deleted_has_no_event)
{
	ASSERT_EQ(1, add(KEVENT_ONESHOT, 1));
	ASSERT_EQ(1, fire(&self->s));
	EXPECT_EQ(1, del());
	want_silence();
	EXPECT_EQ(-ENOENT, del());

	quiet(&self->s);
	ASSERT_EQ(1, add(KEVENT_ONESHOT, 2));
	ASSERT_EQ(1, fire(&self->s));
	want(KEVENT_ONESHOT, 2);
	EXPECT_EQ(-ENOENT, del());
}

TEST_F(mode, one_shot_gives_its_slot_back_with_its_event)
{
	struct kq q;

	if (self->s.kind == FD_LEVEL)
		return;
	ASSERT_EQ(0, kq_open(&q, 1));
	self->s.q = &q;
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, add(KEVENT_ONESHOT, i));
		ASSERT_EQ(1, fire(&self->s));
		EXPECT_EQ(-ENOSPC, kq_add_user(&q, 7, KEVENT_USER_COUNT, 0, 7));
		want(KEVENT_ONESHOT, i);
		quiet(&self->s);
		ASSERT_EQ(1, kq_add_user(&q, 7, KEVENT_USER_COUNT, 0, 7));
		EXPECT_EQ(-ENOSPC, add(KEVENT_ONESHOT, i));
		ASSERT_EQ(1, kq_trigger(&q, 7, 1, 0));
		want_value(&q, self->s.by, KEVENT_SOURCE_USER, 7, 1, 7);
		ASSERT_EQ(1, kq_op(&q, KEVENT_SOURCE_USER, KEVENT_OP_DEL, 7,
				   0));
	}
	kq_close(&q);
}

TEST_F(mode, one_shot_is_made_and_unmade_by_modification)
{
	ASSERT_EQ(1, add(KEVENT_ONESHOT, 1));
	ASSERT_EQ(1, mod(0, 2));
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(1, fire(&self->s));
		want(0, 2);
		quiet(&self->s);
	}
	ASSERT_EQ(1, mod(KEVENT_ONESHOT, 3));
	ASSERT_EQ(1, fire(&self->s));
	want(KEVENT_ONESHOT, 3);
	want_silence();
	EXPECT_EQ(-ENOENT, del());
}

TEST_F(mode, one_shot_that_was_disabled_has_its_event_to_come)
{
	ASSERT_EQ(1, add(KEVENT_ONESHOT, 1));
	ASSERT_EQ(1, fire(&self->s));
	ASSERT_EQ(1, disable());
	want_silence();
	ASSERT_EQ(1, fire(&self->s));
	want_silence();
	ASSERT_EQ(1, enable());
	want(KEVENT_ONESHOT, 1);
	want_silence();
	EXPECT_EQ(-ENOENT, enable());
	EXPECT_EQ(-ENOENT, del());
}

TEST_F(mode, one_shot_whose_event_cannot_be_copied_goes_on)
{
	int ret;

	if (self->s.by == BY_RING)
		return;
	ASSERT_EQ(1, add(KEVENT_ONESHOT, 1));
	ASSERT_EQ(1, fire(&self->s));
	ret = kq_getevents(&self->q, (struct ukevent *)8, 1, 1, PATIENCE_MS);
	EXPECT_EQ(-EFAULT, ret);
	want(KEVENT_ONESHOT, 1);
	EXPECT_EQ(-ENOENT, del());
}

/*
 * Dispatch
 */

TEST_F(mode, dispatch_is_silent_until_it_is_enabled)
{
	ASSERT_EQ(1, add(KEVENT_DISPATCH, 1));
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, fire(&self->s));
		want(KEVENT_DISPATCH, 1);
		/* What happens now is seen when it is enabled. */
		ASSERT_EQ(1, fire(&self->s));
		want_silence();
		ASSERT_EQ(1, fire(&self->s));
		want_silence();
		ASSERT_EQ(1, enable());
		want(KEVENT_DISPATCH, 1);
		want_silence();
		quiet(&self->s);
		ASSERT_EQ(1, enable());
	}
	EXPECT_EQ(1, del());
}

TEST_F(mode, dispatch_has_nothing_to_say_if_nothing_happened)
{
	if (self->s.kind == TIMER)
		return;
	ASSERT_EQ(1, add(KEVENT_DISPATCH, 1));
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(1, fire(&self->s));
		want(KEVENT_DISPATCH, 1);
		quiet(&self->s);
		ASSERT_EQ(1, enable());
		want_silence();
	}
	ASSERT_EQ(1, fire(&self->s));
	want(KEVENT_DISPATCH, 1);
}

TEST_F(mode, dispatch_merges_until_its_event_is_claimed)
{
	ASSERT_EQ(1, add(KEVENT_DISPATCH, 1));
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, fire(&self->s));
	want(KEVENT_DISPATCH, 1);
	want_silence();
}

TEST_F(mode, dispatch_goes_on_by_modification)
{
	ASSERT_EQ(1, add(KEVENT_DISPATCH, 1));
	for (int i = 2; i < 6; i++) {
		ASSERT_EQ(1, fire(&self->s));
		want(KEVENT_DISPATCH, i - 1);
		want_silence();
		ASSERT_EQ(1, i % 2 ? mod(KEVENT_DISPATCH, i) :
				     set(KEVENT_DISPATCH, i));
	}
	ASSERT_EQ(1, fire(&self->s));
	want(KEVENT_DISPATCH, 5);
	/* And it can be left. */
	quiet(&self->s);
	ASSERT_EQ(1, mod(0, 6));
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, fire(&self->s));
		want(0, 6);
		quiet(&self->s);
	}
}

TEST_F(mode, dispatch_whose_event_cannot_be_copied_stays_enabled)
{
	int ret;

	if (self->s.by == BY_RING)
		return;
	ASSERT_EQ(1, add(KEVENT_DISPATCH, 1));
	ASSERT_EQ(1, fire(&self->s));
	ret = kq_getevents(&self->q, (struct ukevent *)8, 1, 1, PATIENCE_MS);
	EXPECT_EQ(-EFAULT, ret);
	want(KEVENT_DISPATCH, 1);
	want_silence();
}

TEST_F(mode, dispatch_can_be_deleted_whatever_its_state)
{
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, add(KEVENT_DISPATCH, i));
		if (i > 0)
			ASSERT_EQ(1, fire(&self->s));
		if (i > 1)
			want(KEVENT_DISPATCH, i);
		EXPECT_EQ(1, del());
		EXPECT_EQ(-ENOENT, enable());
		want_silence();
		quiet(&self->s);
	}
}

/*
 * Enabled or not
 */

TEST_F(mode, disabling_takes_the_unclaimed_event_back)
{
	ASSERT_EQ(1, add(0, 1));
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(1, fire(&self->s));
		ASSERT_EQ(1, disable());
		want_silence();
		ASSERT_EQ(1, fire(&self->s));
		want_silence();
		ASSERT_EQ(1, enable());
		/* It is so, or it was counted, from the beginning. */
		want(0, 1);
		quiet(&self->s);
	}
	EXPECT_EQ(1, del());
}

TEST_F(mode, disabled_file_is_asked_again_when_it_is_enabled)
{
	if (!is_fd(&self->s))
		return;
	ASSERT_EQ(1, add(0, 1));
	ASSERT_EQ(1, fire(&self->s));
	ASSERT_EQ(1, disable());
	quiet(&self->s);
	ASSERT_EQ(1, enable());
	want_silence();
	ASSERT_EQ(1, fire(&self->s));
	want(0, 1);
}

TEST_F(mode, disabled_user_event_is_not_forgotten)
{
	if (!is_user(&self->s))
		return;
	ASSERT_EQ(1, add(0, 1));
	ASSERT_EQ(1, fire(&self->s));
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, disable());
		want_silence();
		ASSERT_EQ(1, enable());
	}
	want(0, 1);
	want_silence();
}

TEST_F(mode, disabling_and_enabling_twice_is_no_error)
{
	ASSERT_EQ(1, add(0, 1));
	EXPECT_EQ(1, disable());
	EXPECT_EQ(1, disable());
	want_silence();
	EXPECT_EQ(1, enable());
	EXPECT_EQ(1, enable());
	ASSERT_EQ(1, fire(&self->s));
	want(0, 1);
	ASSERT_EQ(1, del());
	EXPECT_EQ(-ENOENT, disable());
	EXPECT_EQ(-ENOENT, enable());
}

TEST_F(mode, enabling_what_is_enabled_looks_at_the_source)
{
	if (self->s.kind == TIMER)
		return;
	ASSERT_EQ(1, add(0, 1));
	ASSERT_EQ(1, fire(&self->s));
	ASSERT_EQ(1, enable());
	/* That is the unclaimed event, and no other. */
	want(0, 1);
	if (self->s.kind != FD_LEVEL)
		want_silence();
	ASSERT_EQ(1, enable());
	if (is_fd(&self->s))
		want(0, 1);
	quiet(&self->s);
	ASSERT_EQ(1, enable());
	want_silence();
}

TEST_F(mode, begins_disabled_if_that_is_asked_for)
{
	static const __u32 flags[] = { 0, KEVENT_ONESHOT, KEVENT_DISPATCH };

	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		/* Ready before, if that can be */
		if (is_fd(&self->s))
			fire(&self->s);
		ASSERT_EQ(1, i % 2 ? set(KEVENT_DISABLED | flags[i], i) :
				     add(KEVENT_DISABLED | flags[i], i));
		self->s.triggered = 0;
		want_silence();
		ASSERT_EQ(1, fire(&self->s));
		want_silence();
		ASSERT_EQ(1, enable());
		want(flags[i], i);
		quiet(&self->s);
		EXPECT_EQ(flags[i] == KEVENT_ONESHOT ? -ENOENT : 1, del());
	}
}

TEST_F(mode, is_disabled_by_modification_too)
{
	ASSERT_EQ(1, add(0, 1));
	ASSERT_EQ(1, fire(&self->s));
	want(0, 1);
	for (int i = 2; i < 4; i++) {
		ASSERT_EQ(1, i % 2 ? mod(KEVENT_DISABLED, i) :
				     set(KEVENT_DISABLED, i));
		want_silence();
		ASSERT_EQ(1, fire(&self->s));
		want_silence();
		ASSERT_EQ(1, enable());
		want(0, i);
	}
	/* Modification without the flag enables. */
	ASSERT_EQ(1, disable());
	ASSERT_EQ(1, mod(0, 4));
	ASSERT_EQ(1, fire(&self->s));
	want(0, 4);
}

TEST_F(mode, disabled_wakes_nobody)
{
	struct waiter w = { .wait_only = self->s.by == BY_RING };

	ASSERT_EQ(1, add(KEVENT_DISABLED, 1));
	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
	ASSERT_EQ(1, fire(&self->s));
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	ASSERT_EQ(1, enable());
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(1, w.ret);
	if (w.wait_only)
		want(0, 1);
	EXPECT_EQ(!w.wait_only, w.evs[0].user_data);
}

TEST_F(mode, disabled_does_not_count_for_who_waits_for_more)
{
	struct waiter w = { };

	ASSERT_EQ(1, kq_add_user(&self->q, 7, KEVENT_USER_COUNT, 0, 7));
	ASSERT_EQ(1, kq_trigger(&self->q, 7, 1, 0));
	ASSERT_EQ(1, add(0, 1));
	ASSERT_EQ(1, disable());
	ASSERT_EQ(0, waiter_start(&w, &self->q, 2, 2));
	ASSERT_EQ(1, fire(&self->s));
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	ASSERT_EQ(1, enable());
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(2, w.ret);
}

/*
 * Add or modify
 */

TEST_F(mode, set_adds_or_modifies)
{
	EXPECT_EQ(-ENOENT, del());
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, set(0, 1));
		EXPECT_EQ(-EEXIST, add(0, 9));
		self->s.triggered = 0;
		ASSERT_EQ(1, fire(&self->s));
		want(0, 1);
		quiet(&self->s);
		ASSERT_EQ(1, set(0, 2));
		ASSERT_EQ(1, fire(&self->s));
		want(0, 2);
		quiet(&self->s);
		/* An unclaimed event is not left with what was set before. */
		ASSERT_EQ(1, fire(&self->s));
		ASSERT_EQ(1, set(0, 3));
		want(0, 3);
		quiet(&self->s);
		EXPECT_EQ(1, del());
		EXPECT_EQ(-ENOENT, del());
		want_silence();
	}
}

TEST_F(mode, set_takes_no_second_slot)
{
	struct kq q;

	if (self->s.kind == FD_LEVEL)
		return;
	ASSERT_EQ(0, kq_open(&q, 1));
	self->s.q = &q;
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, set(0, i));
	ASSERT_EQ(1, fire(&self->s));
	want(0, 2);
	self->s.tag = 1;
	EXPECT_EQ(-ENOSPC, set(0, 3));
	kq_close(&q);
}

TEST_F(mode, modes_that_make_no_sense_are_refused)
{
	static const __u16 ops[] = {
		KEVENT_OP_ADD, KEVENT_OP_SET, KEVENT_OP_MOD,
	};
	static const __u32 bad[] = {
		KEVENT_ONESHOT | KEVENT_DISPATCH,
		KEVENT_EDGE | KEVENT_LEVEL,
		KEVENT_ROUND_ROBIN,
		1U << 8,
		1U << 31,
	};

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		if (ops[i] == KEVENT_OP_MOD)
			ASSERT_EQ(1, add(0, 1));
		for (size_t j = 0; j < ARRAY_SIZE(bad); j++) {
			EXPECT_EQ(-EINVAL, change(&self->s, ops[i], bad[j], 2))
				TH_LOG("op %u, flags %#x", ops[i], bad[j]);
		}
		if (ops[i] != KEVENT_OP_ADD)
			EXPECT_EQ(-EINVAL, change(&self->s, ops[i],
						  KEVENT_EXCLUSIVE, 2));
		if (!is_fd(&self->s)) {
			EXPECT_EQ(-EINVAL, change(&self->s, ops[i],
						  KEVENT_EXCLUSIVE, 2));
			EXPECT_EQ(-EINVAL, change(&self->s, ops[i],
						  KEVENT_ALWAYS_READY, 2));
		}
		if (ops[i] != KEVENT_OP_MOD)
			EXPECT_EQ(-ENOENT, del());
	}
	/* What was refused has changed nothing. */
	ASSERT_EQ(1, fire(&self->s));
	want(0, 1);
}

/*
 * The event waits behind a full ring.
 */

#define OTHER 99	/* whose event fills it */

static void crowd(struct __test_metadata *_metadata, struct subject *s)
{
	kq_close(s->q);
	ASSERT_EQ(0, kq_open_flags(s->q, 1, KEVENT_INIT_OVERCOMMIT, 0));
	ASSERT_EQ(1, kq_add_user(s->q, OTHER, KEVENT_USER_COUNT, 0, OTHER));
	ASSERT_EQ(1, kq_trigger(s->q, OTHER, 1, 0));
}

static void want_waiting(struct __test_metadata *_metadata, struct subject *s)
{
	int ms = 0;

	ASSERT_EQ(1, fire(s));
	while (!kevent_ring_flags(&s->q->map) && ms++ < PATIENCE_MS)
		sleep_ms(1);
	ASSERT_EQ(KEVENT_RING_OVERFLOW, kevent_ring_flags(&s->q->map));
}

static void make_room(struct __test_metadata *_metadata, struct subject *s)
{
	want_value(s->q, s->by, KEVENT_SOURCE_USER, OTHER, 1, OTHER);
	EXPECT_EQ(0, kq_let_in(s->q));
	EXPECT_EQ(0, kevent_ring_flags(&s->q->map));
}

TEST_F(mode, disabling_takes_a_waiting_event_back)
{
	if (self->s.kind == FD_LEVEL)
		return;
	crowd(_metadata, &self->s);
	ASSERT_EQ(1, add(0, 1));
	want_waiting(_metadata, &self->s);
	ASSERT_EQ(1, disable());
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	ASSERT_EQ(1, fire(&self->s));
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	make_room(_metadata, &self->s);
	want_silence();
	ASSERT_EQ(1, enable());
	want(0, 1);
}

TEST_F(mode, waiting_event_of_a_one_shot_comes_once)
{
	if (self->s.kind == FD_LEVEL)
		return;
	crowd(_metadata, &self->s);
	ASSERT_EQ(1, add(KEVENT_ONESHOT, 1));
	want_waiting(_metadata, &self->s);
	ASSERT_EQ(1, fire(&self->s));
	EXPECT_EQ(-EEXIST, add(KEVENT_ONESHOT, 2));
	make_room(_metadata, &self->s);
	want(KEVENT_ONESHOT, 1);
	want_silence();
	EXPECT_EQ(-ENOENT, del());
}

TEST_F(mode, waiting_event_of_a_dispatch_comes_once)
{
	if (self->s.kind == FD_LEVEL)
		return;
	crowd(_metadata, &self->s);
	ASSERT_EQ(1, add(KEVENT_DISPATCH, 1));
	want_waiting(_metadata, &self->s);
	make_room(_metadata, &self->s);
	want(KEVENT_DISPATCH, 1);
	ASSERT_EQ(1, fire(&self->s));
	want_silence();
	ASSERT_EQ(1, enable());
	want(KEVENT_DISPATCH, 1);
	EXPECT_EQ(1, del());
}

/*
 * Tags
 */

/* Events of both have to come, and of nobody else. */
static void want_both(struct __test_metadata *_metadata, struct subject *a,
		      struct subject *b)
{
	bool seen_a = false, seen_b = false;

	ASSERT_EQ(1, fire(a));
	if (is_user(b))
		ASSERT_EQ(1, fire(b));
	for (int i = 0; i < 50 && !(seen_a && seen_b); i++) {
		struct ukevent ev;

		ASSERT_EQ(1, kq_next(a->q, a->by, &ev));
		EXPECT_EQ(source_of(a), ev.source);
		EXPECT_EQ(ident_of(a), ev.ident);
		if (ev.tag == a->tag) {
			EXPECT_EQ(1, ev.user_data);
			EXPECT_TRUE(value_ok(a, ev.events));
			if (a->kind == USER_COUNT)
				a->triggered = 0;
			seen_a = true;
		} else {
			EXPECT_EQ(b->tag, ev.tag);
			EXPECT_EQ(2, ev.user_data);
			EXPECT_TRUE(value_ok(b, ev.events));
			if (b->kind == USER_COUNT)
				b->triggered = 0;
			seen_b = true;
		}
	}
	EXPECT_TRUE(seen_a && seen_b);
	quiet(a);
}

TEST_F(mode, tags_tell_registrations_apart)
{
	struct subject a = self->s, b = self->s, none = self->s;

	a.tag = 1;
	b.tag = ~0U;
	ASSERT_EQ(1, change(&a, KEVENT_OP_ADD, 0, 1));
	ASSERT_EQ(1, change(&b, KEVENT_OP_ADD, 0, 2));
	EXPECT_EQ(-EEXIST, change(&a, KEVENT_OP_ADD, 0, 3));
	EXPECT_EQ(-EEXIST, change(&b, KEVENT_OP_ADD, 0, 3));
	EXPECT_EQ(-ENOENT, change(&none, KEVENT_OP_MOD, 0, 3));
	EXPECT_EQ(-ENOENT, named_op(&none, KEVENT_OP_DEL));
	EXPECT_EQ(-ENOENT, named_op(&none, KEVENT_OP_DISABLE));
	if (is_user(&none))
		EXPECT_EQ(-ENOENT, fire(&none));
	want_both(_metadata, &a, &b);

	/* What is done to the one is not done to the other. */
	ASSERT_EQ(1, named_op(&b, KEVENT_OP_DISABLE));
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, fire(&a));
		if (is_user(&b))
			ASSERT_EQ(1, fire(&b));
		__want(_metadata, __LINE__, &a, 0, 1);
		quiet(&a);
	}
	ASSERT_EQ(1, named_op(&b, KEVENT_OP_ENABLE));
	if (is_user(&b))
		__want(_metadata, __LINE__, &b, 0, 2);
	want_both(_metadata, &a, &b);

	ASSERT_EQ(1, named_op(&a, KEVENT_OP_DEL));
	EXPECT_EQ(-ENOENT, named_op(&a, KEVENT_OP_DEL));
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, fire(&b));
		__want(_metadata, __LINE__, &b, 0, 2);
		quiet(&b);
	}
	ASSERT_EQ(1, named_op(&b, KEVENT_OP_DEL));
	want_silence();
}

TEST_F(mode, trigger_finds_the_tag)
{
	struct subject a = self->s, b = self->s;

	if (!is_user(&self->s))
		return;
	b.tag = 5;
	ASSERT_EQ(1, change(&a, KEVENT_OP_ADD, 0, 1));
	ASSERT_EQ(1, change(&b, KEVENT_OP_ADD, KEVENT_ONESHOT, 2));
	ASSERT_EQ(1, fire(&a));
	__want(_metadata, __LINE__, &a, 0, 1);
	want_silence();
	ASSERT_EQ(1, fire(&b));
	__want(_metadata, __LINE__, &b, KEVENT_ONESHOT, 2);
	want_silence();
	EXPECT_EQ(-ENOENT, fire(&b));
	ASSERT_EQ(1, fire(&a));
	__want(_metadata, __LINE__, &a, 0, 1);
}

/*
 * A descriptor registered twice, once for reading and once for writing, as
 * kqueue has it
 */

#define READ 1
#define WRITE 2

FIXTURE(two_ways) {
	struct kq q;
	int s[2];
};

FIXTURE_VARIANT(two_ways) {
	__u32 mode;
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(two_ways, edge_ring) { KEVENT_EDGE, BY_RING };
FIXTURE_VARIANT_ADD(two_ways, edge_call) { KEVENT_EDGE, BY_SYSCALL };
FIXTURE_VARIANT_ADD(two_ways, level_call) { KEVENT_LEVEL, BY_SYSCALL };

FIXTURE_SETUP(two_ways)
{
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC |
				SOCK_NONBLOCK, 0, self->s));
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(two_ways)
{
	kq_close(&self->q);
}

static __u32 way_events(__u32 way)
{
	return way == READ ? EPOLLIN : EPOLLOUT;
}

static int add_way(const struct kq *q, int fd, __u32 way, __u32 mode)
{
	struct ukevent c = kq_mode_change(KEVENT_OP_ADD, fd, way_events(way),
					  mode, 100 + way);

	c.tag = way;
	return kq_apply(q, c);
}

static void __want_way(struct __test_metadata *_metadata, int line,
		       struct kq *q, enum collect_by by, int fd, __u32 way)
{
	struct ukevent ev;

	ASSERT_EQ(1, kq_next(q, by, &ev))
		TH_LOG("line %d: no event", line);
	EXPECT_EQ(fd, ev.ident);
	EXPECT_EQ(way, ev.tag)
		TH_LOG("line %d", line);
	EXPECT_EQ(100 + way, ev.user_data)
		TH_LOG("line %d", line);
	EXPECT_TRUE(fd_value_ok(ev.events, way_events(way), way_events(way)))
		TH_LOG("line %d: value %#x", line, ev.events);
}

#define want_way(way) \
	__want_way(_metadata, __LINE__, &self->q, variant->by, self->s[0], way)
#define want_no_way() do {			\
	want_none(&self->q, BY_RING);		\
	want_none(&self->q, BY_SYSCALL);	\
} while (0)
#define way_op(op, way) \
	kq_op(&self->q, KEVENT_SOURCE_FD, op, self->s[0], way)

static void fill(int fd)
{
	char page[4096] = { };

	while (write(fd, page, sizeof(page)) > 0)
		;
}

static void drain(int fd)
{
	char page[4096];

	while (read(fd, page, sizeof(page)) > 0)
		;
}

TEST_F(two_ways, are_reported_and_enabled_separately)
{
	const __u32 mode = variant->mode | KEVENT_DISPATCH;

	ASSERT_EQ(1, add_way(&self->q, self->s[0], READ, mode));
	want_no_way();
	ASSERT_EQ(1, add_way(&self->q, self->s[0], WRITE, mode));
	want_way(WRITE);
	want_no_way();
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(2, write(self->s[1], "xx", 2));
		want_way(READ);
		want_no_way();
		ASSERT_EQ(1, way_op(KEVENT_OP_ENABLE, WRITE));
		want_way(WRITE);
		want_no_way();
		/* There is something left to read. */
		ASSERT_EQ(1, way_op(KEVENT_OP_ENABLE, READ));
		want_way(READ);
		drain(self->s[0]);
		ASSERT_EQ(1, way_op(KEVENT_OP_ENABLE, READ));
		want_no_way();
	}
	ASSERT_EQ(1, way_op(KEVENT_OP_DEL, READ));
	EXPECT_EQ(-ENOENT, way_op(KEVENT_OP_ENABLE, READ));
	ASSERT_EQ(1, write(self->s[1], "x", 1));
	want_no_way();
	ASSERT_EQ(1, way_op(KEVENT_OP_ENABLE, WRITE));
	want_way(WRITE);
	ASSERT_EQ(1, way_op(KEVENT_OP_DEL, WRITE));
	EXPECT_EQ(-ENOENT, way_op(KEVENT_OP_DEL, WRITE));
}

TEST_F(two_ways, are_reported_when_they_become_ready)
{
	fill(self->s[0]);
	ASSERT_EQ(1, add_way(&self->q, self->s[0], READ, variant->mode));
	ASSERT_EQ(1, add_way(&self->q, self->s[0], WRITE, variant->mode));
	want_no_way();
	ASSERT_EQ(1, write(self->s[1], "x", 1));
	want_way(READ);
	drain(self->s[0]);
	want_no_way();
	drain(self->s[1]);
	want_way(WRITE);
	fill(self->s[0]);
	if (variant->mode == KEVENT_LEVEL)
		want_no_way();
}

TEST_F(two_ways, end_with_the_descriptor)
{
	int copy = dup(self->s[0]);

	ASSERT_EQ(1, add_way(&self->q, self->s[0], READ, variant->mode));
	ASSERT_EQ(1, add_way(&self->q, self->s[0], WRITE, variant->mode));
	ASSERT_EQ(1, write(self->s[1], "x", 1));
	ASSERT_EQ(0, close(self->s[0]));
	want_no_way();
	ASSERT_EQ(1, write(self->s[1], "x", 1));
	want_no_way();
	ASSERT_EQ(self->s[0], dup2(copy, self->s[0]));
	EXPECT_EQ(-ENOENT, way_op(KEVENT_OP_DEL, READ));
	EXPECT_EQ(-ENOENT, way_op(KEVENT_OP_DEL, WRITE));
	ASSERT_EQ(1, add_way(&self->q, self->s[0], READ, variant->mode));
	want_way(READ);
}

/* Waits for one direction go on while the other has its one event. */
TEST_F(two_ways, can_be_of_different_modes)
{
	ASSERT_EQ(1, add_way(&self->q, self->s[0], WRITE,
			     variant->mode | KEVENT_ONESHOT));
	ASSERT_EQ(1, add_way(&self->q, self->s[0], READ, variant->mode));
	want_way(WRITE);
	for (int i = 0; i < 3; i++) {
		want_no_way();
		ASSERT_EQ(1, write(self->s[1], "x", 1));
		want_way(READ);
		drain(self->s[0]);
	}
	EXPECT_EQ(-ENOENT, way_op(KEVENT_OP_DEL, WRITE));
	EXPECT_EQ(1, way_op(KEVENT_OP_DEL, READ));
}

TEST_F(two_ways, one_shot_gathers_all_that_happens_until_it_is_claimed)
{
	const __u32 asked = EPOLLIN | EPOLLRDHUP;
	const __u32 mode = variant->mode | KEVENT_ONESHOT;

	ASSERT_EQ(1, kq_add_mode(&self->q, self->s[0], asked, mode, 1));
	ASSERT_EQ(1, write(self->s[1], "x", 1));
	ASSERT_EQ(0, shutdown(self->s[1], SHUT_WR));
	want_mode(&self->q, variant->by, self->s[0], asked, asked, mode, 1);
	close(self->s[1]);
	want_no_way();
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->s[0]));
}

/*
 * Files that are always ready
 */

#define ALWAYS_VALUE (EPOLLIN | EPOLLOUT | EPOLLRDNORM | EPOLLWRNORM)

FIXTURE(always) {
	struct kq q;
	int fd;
	__u32 mode;
};

FIXTURE_VARIANT(always) {
	const char *path;	/* null: a file in memory */
	__u32 mode;
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(always, regular_edge_ring) {
	NULL, KEVENT_EDGE, BY_RING,
};

FIXTURE_VARIANT_ADD(always, regular_edge_call) {
	NULL, KEVENT_EDGE, BY_SYSCALL,
};

FIXTURE_VARIANT_ADD(always, regular_level_call) {
	NULL, KEVENT_LEVEL, BY_SYSCALL,
};

FIXTURE_VARIANT_ADD(always, null_edge_ring) {
	"/dev/null", KEVENT_EDGE, BY_RING,
};

FIXTURE_VARIANT_ADD(always, null_level_call) {
	"/dev/null", KEVENT_LEVEL, BY_SYSCALL,
};

FIXTURE_SETUP(always)
{
	self->mode = variant->mode | KEVENT_ALWAYS_READY;
	if (variant->path) {
		self->fd = open(variant->path, O_RDWR | O_CLOEXEC);
		if (self->fd < 0)
			SKIP(return, "there is no %s", variant->path);
	} else {
		self->fd = memfd_create("kevent", MFD_CLOEXEC);
		ASSERT_LE(0, self->fd);
	}
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(always)
{
	kq_close(&self->q);
}

/* An event of exactly that; the more of them if it is level-triggered */
static void __want_always(struct __test_metadata *_metadata, int line,
			  struct kq *q, enum collect_by by, int fd,
			  __u32 value, __u32 mode, __u64 udata)
{
	for (int i = 0; i < (mode & KEVENT_LEVEL ? 3 : 1); i++) {
		EXPECT_EQ(value, __want_mode(_metadata, line, q, by, fd, value,
					     value, mode, udata))
			TH_LOG("line %d", line);
	}
	if (!(mode & KEVENT_LEVEL)) {
		__want_none(_metadata, line, q, BY_RING);
		__want_none(_metadata, line, q, BY_SYSCALL);
	}
}

#define want_always(value, udata) \
	__want_always(_metadata, __LINE__, &self->q, variant->by, self->fd, \
		      value, self->mode, udata)

TEST_F(always, file_is_refused_without_the_flag)
{
	EXPECT_EQ(-EPERM, kq_add_mode(&self->q, self->fd, EPOLLIN,
				      variant->mode, 1));
	EXPECT_EQ(-EPERM, kq_set_mode(&self->q, self->fd, EPOLLIN,
				      variant->mode, 1));
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->fd));
}

TEST_F(always, file_is_ready_for_reading_and_writing)
{
	const __u32 all = ALWAYS_VALUE | EPOLLPRI | EPOLLRDHUP | EPOLLRDBAND;

	ASSERT_EQ(1, kq_add_mode(&self->q, self->fd, all, self->mode, 1));
	want_always(ALWAYS_VALUE, 1);
	/* What is done to the file is no event. */
	EXPECT_EQ(1, write(self->fd, "x", 1));
	if (variant->mode == KEVENT_EDGE)
		want_none(&self->q, variant->by);
	EXPECT_EQ(1, kq_del(&self->q, self->fd));
	want_none(&self->q, variant->by);
	want_none(&self->q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
}

TEST_F(always, file_is_ready_for_no_more_than_what_is_asked)
{
	static const __u32 asked[] = {
		EPOLLIN, EPOLLOUT, EPOLLIN | EPOLLOUT, EPOLLRDNORM,
	};

	for (size_t i = 0; i < ARRAY_SIZE(asked); i++) {
		ASSERT_EQ(1, kq_add_mode(&self->q, self->fd, asked[i],
					 self->mode, i));
		want_always(asked[i], i);
		ASSERT_EQ(1, kq_del(&self->q, self->fd));
	}
	ASSERT_EQ(1, kq_add_mode(&self->q, self->fd, EPOLLPRI, self->mode, 9));
	want_none(&self->q, BY_RING);
	want_none(&self->q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
}

TEST_F(always, file_is_reported_again_by_every_change)
{
	ASSERT_EQ(1, kq_set_mode(&self->q, self->fd, EPOLLIN, self->mode, 1));
	want_always(EPOLLIN, 1);
	ASSERT_EQ(1, kq_mod_mode(&self->q, self->fd, EPOLLOUT, self->mode, 2));
	want_always(EPOLLOUT, 2);
	ASSERT_EQ(1, kq_set_mode(&self->q, self->fd, EPOLLIN, self->mode, 3));
	want_always(EPOLLIN, 3);
	ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_FD, KEVENT_OP_ENABLE,
			   self->fd, 0));
	want_always(EPOLLIN, 3);
	ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_FD, KEVENT_OP_DISABLE,
			   self->fd, 0));
	want_none(&self->q, BY_RING);
	want_none(&self->q, BY_SYSCALL);
	ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_FD, KEVENT_OP_ENABLE,
			   self->fd, 0));
	want_always(EPOLLIN, 3);
}

TEST_F(always, file_can_be_of_any_mode)
{
	const __u32 shot = self->mode | KEVENT_ONESHOT;
	const __u32 dispatch = self->mode | KEVENT_DISPATCH;

	for (int i = 0; i < 2 * SLOTS; i++) {
		ASSERT_EQ(1, kq_add_mode(&self->q, self->fd, EPOLLIN, shot, i));
		want_mode(&self->q, variant->by, self->fd, EPOLLIN, EPOLLIN,
			  shot, i);
		want_none(&self->q, BY_SYSCALL);
	}
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->fd));
	ASSERT_EQ(1, kq_add_mode(&self->q, self->fd, EPOLLIN,
				 dispatch | KEVENT_DISABLED, 1));
	want_none(&self->q, BY_SYSCALL);
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_FD, KEVENT_OP_ENABLE,
				   self->fd, 0));
		want_mode(&self->q, variant->by, self->fd, EPOLLIN, EPOLLIN,
			  dispatch, 1);
		want_none(&self->q, BY_SYSCALL);
	}
	EXPECT_EQ(1, kq_del(&self->q, self->fd));
}

TEST_F(always, file_ends_the_wait_at_once)
{
	struct ukevent ev;

	ASSERT_EQ(1, kq_add_mode(&self->q, self->fd, EPOLLIN, self->mode, 1));
	EXPECT_EQ(1, kq_getevents(&self->q, NULL, 1, 0, PATIENCE_MS));
	ASSERT_EQ(1, kq_getevents(&self->q, &ev, 1, 1, PATIENCE_MS));
	EXPECT_EQ(1, ev.user_data);
	EXPECT_EQ(variant->mode == KEVENT_LEVEL,
		  kq_getevents(&self->q, NULL, 1, 0, 0));
}

TEST_F(always, file_is_registered_until_it_is_closed)
{
	int copy = dup(self->fd);

	ASSERT_EQ(1, kq_add_mode(&self->q, self->fd, EPOLLIN, self->mode, 1));
	ASSERT_EQ(0, close(self->fd));
	want_none(&self->q, BY_RING);
	want_none(&self->q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	ASSERT_EQ(self->fd, dup2(copy, self->fd));
	ASSERT_EQ(1, kq_add_mode(&self->q, self->fd, EPOLLIN, self->mode, 2));
	want_always(EPOLLIN, 2);
}

TEST_F(always, ready_is_no_other_file_because_of_the_flag)
{
	int efd = open_eventfd();

	ASSERT_EQ(1, kq_add_mode(&self->q, efd, EPOLLIN, self->mode, 1));
	want_none(&self->q, BY_RING);
	want_none(&self->q, BY_SYSCALL);
	for (int i = 0; i < 2; i++) {
		signal_eventfd(efd);
		want_mode(&self->q, variant->by, efd, EPOLLIN, EPOLLIN,
			  self->mode, 1);
		drain_eventfd(efd);
		want_none(&self->q, BY_SYSCALL);
	}
}

/*
 * Several queues watch one file, of which one is to be told.
 */

#define NQ 4
#define NR_EXCLUSIVE 3		/* the others can be anything */

FIXTURE(exclusive) {
	struct kq q[NQ];
	struct waiter w[NQ];
	int fd;
};

FIXTURE_VARIANT(exclusive) {
	__u32 mode;
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(exclusive, edge_ring) { KEVENT_EDGE, BY_RING };
FIXTURE_VARIANT_ADD(exclusive, edge_call) { KEVENT_EDGE, BY_SYSCALL };
FIXTURE_VARIANT_ADD(exclusive, level_call) { KEVENT_LEVEL, BY_SYSCALL };

FIXTURE_SETUP(exclusive)
{
	self->fd = open_eventfd();
	ASSERT_LE(0, self->fd);
	if (!kq_setup(_metadata, &self->q[0], SLOTS))
		return;
	for (int i = 1; i < NQ; i++)
		ASSERT_EQ(0, kq_open(&self->q[i], SLOTS));
}

FIXTURE_TEARDOWN(exclusive)
{
	for (int i = 0; i < NQ; i++)
		kq_close(&self->q[i]);
}

/*
 * Does a thread sleep in a system call?  Its state alone does not tell: whoever
 * is about to sleep, and whoever was woken and is about to find out why, is in
 * that state as well.  But this file says "running" then.
 */
static bool sleeps_in_call(const char *path)
{
	char first;
	bool ok;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	ok = read(fd, &first, 1) == 1 && first >= '0' && first <= '9';
	close(fd);
	return ok;
}

/*
 * Unlike wait_until_asleep(), this has to be right: who is told depends on who
 * sleeps, and in which order they went to sleep.
 */
static bool thread_asleep(pid_t *tid, int *done)
{
	__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
	char stat[64], call[64];

	while (!__atomic_load_n(tid, __ATOMIC_ACQUIRE) && now_ns() < end)
		sched_yield();
	snprintf(stat, sizeof(stat), "/proc/self/task/%d/stat", *tid);
	snprintf(call, sizeof(call), "/proc/self/task/%d/syscall", *tid);
	while (!__atomic_load_n(done, __ATOMIC_ACQUIRE) && now_ns() < end) {
		if (task_state(stat) == 'S' && sleeps_in_call(call))
			return true;
		sched_yield();
	}
	return false;
}

static bool asleep(struct waiter *w)
{
	return thread_asleep(&w->tid, &w->done);
}

static bool wait_at(struct waiter *w, const struct kq *q, enum collect_by by)
{
	w->wait_only = by == BY_RING;
	return !waiter_start(w, q, 1, 1) && asleep(w);
}

/* Those who are woken, a bit for each */
static unsigned int who_ends(struct waiter *w, int nr)
{
	__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
	unsigned int ended = 0, before;

	while (!ended && now_ns() < end) {
		sleep_ms(1);
		for (int i = 0; i < nr; i++)
			if (w[i].q && waiter_done(&w[i]))
				ended |= 1U << i;
	}
	/*
	 * The others have to sleep on.  An eventfd has woken by now whom it
	 * wakes, and so has whoever ended, and who is woken does not sleep until
	 * it has found out why.  Look again if one ended, as it can have woken
	 * one that was looked at before.
	 */
	do {
		before = ended;
		for (int i = 0; i < nr; i++)
			if (w[i].q && !(ended >> i & 1) && !asleep(&w[i]))
				ended |= 1U << i;
	} while (ended != before);
	return ended;
}

/* Claims the event of everyone who was told of it. */
static void settle(struct __test_metadata *_metadata, struct kq *q,
		   struct waiter *w, unsigned int told, int fd)
{
	for (int i = 0; told >> i; i++) {
		struct ukevent ev;

		if (!(told >> i & 1))
			continue;
		ASSERT_TRUE(waiter_join(&w[i]));
		EXPECT_EQ(1, w[i].ret);
		if (w[i].wait_only)
			EXPECT_EQ(1, kq_collect(&q[i], BY_RING, &ev, 1));
		w[i].q = NULL;
	}
	drain_eventfd(fd);
}

static int add_exclusive(const struct kq *q, int fd, __u32 flags)
{
	return kq_add_mode(q, fd, EPOLLIN, flags | KEVENT_EXCLUSIVE, 0);
}

static void __wait_in(struct __test_metadata *_metadata, int line,
		      struct waiter *w, const struct kq *q, int i,
		      enum collect_by by)
{
	ASSERT_TRUE(wait_at(&w[i], &q[i], by))
		TH_LOG("line %d", line);
}

#define wait_in(i) \
	__wait_in(_metadata, __LINE__, self->w, self->q, i, variant->by)

/* Who is told if something happens */
#define tell() ({							\
	unsigned int told;						\
									\
	signal_eventfd(self->fd);					\
	told = who_ends(self->w, NQ);					\
	settle(_metadata, self->q, self->w, told, self->fd);		\
	told;								\
})

TEST_F(exclusive, first_queue_that_waits_is_told)
{
	for (int i = 0; i < NR_EXCLUSIVE; i++)
		ASSERT_EQ(1, add_exclusive(&self->q[i], self->fd,
					   variant->mode));
	for (int i = 0; i < NR_EXCLUSIVE; i++)
		wait_in(i);
	for (int i = 0; i < 4; i++) {
		EXPECT_EQ(1U << 0, tell())
			TH_LOG("round %d", i);
		wait_in(0);
	}
	/* If it does not wait, it is the next one's turn. */
	EXPECT_EQ(1U << 0, tell());
	EXPECT_EQ(1U << 1, tell());
	wait_in(1);
	EXPECT_EQ(1U << 1, tell());
	EXPECT_EQ(1U << 2, tell());
}

TEST_F(exclusive, queues_take_turns_if_that_is_asked_for)
{
	unsigned int told[3 * NR_EXCLUSIVE];

	for (int i = 0; i < NR_EXCLUSIVE; i++)
		ASSERT_EQ(1, add_exclusive(&self->q[i], self->fd,
					   variant->mode | KEVENT_ROUND_ROBIN));
	for (int i = 0; i < NR_EXCLUSIVE; i++)
		wait_in(i);
	for (int i = 0; i < 3 * NR_EXCLUSIVE; i++) {
		told[i] = tell();
		for (int j = 0; j < NR_EXCLUSIVE; j++)
			if (told[i] >> j & 1)
				wait_in(j);
		if (i >= NR_EXCLUSIVE) {
			EXPECT_EQ(told[i - NR_EXCLUSIVE], told[i])
				TH_LOG("round %d", i);
		}
	}
	EXPECT_EQ(7, told[0] | told[1] | told[2]);
	EXPECT_EQ(7, told[0] + told[1] + told[2]);
}

TEST_F(exclusive, queues_that_are_not_are_told_as_well)
{
	ASSERT_EQ(1, add_exclusive(&self->q[0], self->fd, variant->mode));
	ASSERT_EQ(1, kq_add_mode(&self->q[3], self->fd, EPOLLIN, variant->mode,
				 0));
	ASSERT_EQ(1, add_exclusive(&self->q[1], self->fd, variant->mode));
	ASSERT_EQ(1, kq_add_mode(&self->q[2], self->fd, EPOLLIN, variant->mode,
				 0));
	for (int i = 0; i < NQ; i++)
		wait_in(i);
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(1U << 0 | 1U << 2 | 1U << 3, tell());
		wait_in(0);
		wait_in(2);
		wait_in(3);
	}
}

/* Nothing is lost because nobody waits: all have it. */
TEST_F(exclusive, event_is_somewhere_if_nobody_waits)
{
	for (int turns = 0; turns < 2; turns++) {
		const __u32 flags = turns ? KEVENT_ROUND_ROBIN : 0;

		for (int i = 0; i < NR_EXCLUSIVE; i++)
			ASSERT_EQ(1, add_exclusive(&self->q[i], self->fd,
						   variant->mode | flags));
		for (int round = 0; round < 3; round++) {
			struct ukevent ev;
			int found = 0;

			signal_eventfd(self->fd);
			for (int i = 0; i < NR_EXCLUSIVE; i++)
				found += kq_collect(&self->q[i], variant->by,
						    &ev, 1);
			EXPECT_EQ(NR_EXCLUSIVE, found);
			drain_eventfd(self->fd);
		}
		for (int i = 0; i < NR_EXCLUSIVE; i++)
			ASSERT_EQ(1, kq_del(&self->q[i], self->fd));
	}
}

/* A thread that polls a queue, or an epoll that watches it */
struct poller {
	pthread_t thread;
	int fd;
	pid_t tid;
	int done;
	int ret;
};

static void *poller_fn(void *arg)
{
	struct poller *p = arg;
	struct pollfd pfd = { .fd = p->fd, .events = POLLIN };

	__atomic_store_n(&p->tid, syscall(__NR_gettid), __ATOMIC_RELEASE);
	p->ret = poll(&pfd, 1, PATIENCE_MS);
	__atomic_store_n(&p->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

/*
 * Queue 1 is polled, and was told; queue 0, which came before it, keeps the
 * event as well; queue 2, at which a thread waits, was not told.
 */
static void want_told_by_poll(struct __test_metadata *_metadata, struct kq *q,
			      struct waiter *w, int fd, enum collect_by by)
{
	struct ukevent ev;

	EXPECT_TRUE(asleep(&w[2]));
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(1, kq_collect(&q[i], by, &ev, 1))
			TH_LOG("queue %d", i);
		EXPECT_EQ(fd, ev.ident);
	}
	drain_eventfd(fd);
	/* To who polls it is readable until a call has found out. */
	for (int i = 0; i < 2; i++)
		want_none(&q[i], BY_SYSCALL);
	EXPECT_TRUE(asleep(&w[2]));
}

static void poll_and_tell(struct __test_metadata *_metadata, int fd, int polled)
{
	struct poller p = { .fd = polled };

	ASSERT_EQ(0, pthread_create(&p.thread, NULL, poller_fn, &p));
	ASSERT_TRUE(thread_asleep(&p.tid, &p.done));
	signal_eventfd(fd);
	pthread_join(p.thread, NULL);
	EXPECT_EQ(1, p.ret);
}

TEST_F(exclusive, first_queue_that_is_polled_is_told)
{
	struct epoll_event event = { .events = EPOLLIN };
	int epfd = epoll_create1(EPOLL_CLOEXEC);

	ASSERT_LE(0, epfd);
	for (int i = 0; i < NR_EXCLUSIVE; i++)
		ASSERT_EQ(1, add_exclusive(&self->q[i], self->fd,
					   variant->mode));
	wait_in(2);
	for (int i = 0; i < 3; i++) {
		poll_and_tell(_metadata, self->fd, self->q[1].fd);
		want_told_by_poll(_metadata, self->q, self->w, self->fd,
				  variant->by);
	}

	ASSERT_EQ(0, epoll_ctl(epfd, EPOLL_CTL_ADD, self->q[1].fd, &event));
	for (int i = 0; i < 3; i++) {
		poll_and_tell(_metadata, self->fd, epfd);
		want_told_by_poll(_metadata, self->q, self->w, self->fd,
				  variant->by);
	}
	/* An epoll polls it, whether somebody waits there or not. */
	signal_eventfd(self->fd);
	EXPECT_EQ(1, epoll_wait(epfd, &event, 1, 0));
	want_told_by_poll(_metadata, self->q, self->w, self->fd, variant->by);

	/* Without it, it is the turn of the one that waits. */
	ASSERT_EQ(0, epoll_ctl(epfd, EPOLL_CTL_DEL, self->q[1].fd, NULL));
	EXPECT_EQ(1U << 2, tell());
}

/* Who would do nothing about it is not told in place of another. */
TEST_F(exclusive, queue_that_is_not_interested_is_passed_over)
{
	ASSERT_EQ(1, kq_add_mode(&self->q[0], self->fd, 0,
				 variant->mode | KEVENT_EXCLUSIVE, 0));
	ASSERT_EQ(1, add_exclusive(&self->q[1], self->fd, variant->mode));
	ASSERT_EQ(1, add_exclusive(&self->q[2], self->fd, variant->mode));
	for (int i = 0; i < NR_EXCLUSIVE; i++)
		wait_in(i);
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(1U << 1, tell());
		wait_in(1);
	}
}

TEST_F(exclusive, queue_that_is_disabled_is_passed_over)
{
	for (int i = 0; i < NR_EXCLUSIVE; i++)
		ASSERT_EQ(1, add_exclusive(&self->q[i], self->fd,
					   variant->mode));
	ASSERT_EQ(1, kq_op(&self->q[0], KEVENT_SOURCE_FD, KEVENT_OP_DISABLE,
			   self->fd, 0));
	for (int i = 0; i < NR_EXCLUSIVE; i++)
		wait_in(i);
	EXPECT_EQ(1U << 1, tell());
	wait_in(1);
	ASSERT_EQ(1, kq_op(&self->q[0], KEVENT_SOURCE_FD, KEVENT_OP_ENABLE,
			   self->fd, 0));
	EXPECT_EQ(1U << 0, tell());
}

TEST_F(exclusive, queue_that_was_dispatched_is_passed_over)
{
	for (int i = 0; i < NR_EXCLUSIVE; i++)
		ASSERT_EQ(1, add_exclusive(&self->q[i], self->fd,
					   variant->mode | KEVENT_DISPATCH));
	for (int i = 0; i < NR_EXCLUSIVE; i++)
		wait_in(i);
	for (int i = 0; i < NR_EXCLUSIVE; i++) {
		EXPECT_EQ(1U << i, tell());
		wait_in(i);
	}
	for (int i = NR_EXCLUSIVE - 1; i >= 0; i--) {
		ASSERT_EQ(1, kq_op(&self->q[i], KEVENT_SOURCE_FD,
				   KEVENT_OP_ENABLE, self->fd, 0));
		EXPECT_EQ(1U << i, tell());
	}
}

TEST_F(exclusive, queue_that_is_gone_is_passed_over)
{
	for (int i = 0; i < NR_EXCLUSIVE; i++)
		ASSERT_EQ(1, add_exclusive(&self->q[i], self->fd,
					   variant->mode));
	for (int i = 0; i < NR_EXCLUSIVE; i++)
		wait_in(i);
	ASSERT_EQ(1, kq_del(&self->q[0], self->fd));
	EXPECT_EQ(1U << 1, tell());
	kq_close(&self->q[1]);
	EXPECT_EQ(1U << 2, tell());
	wait_in(2);
	/* Who comes again is the last. */
	ASSERT_EQ(1, add_exclusive(&self->q[0], self->fd, variant->mode));
	EXPECT_EQ(1U << 2, tell());
	EXPECT_EQ(1U << 0, tell());
}

/* A hang-up is for everybody.  Taking turns does not go on for ever then. */
TEST_F(exclusive, queues_are_all_told_of_a_hang_up)
{
	for (int turns = 0; turns < 2; turns++) {
		const __u32 flags = turns ? KEVENT_ROUND_ROBIN : 0;
		int s[2];

		ASSERT_EQ(0, sync_open(s));
		for (int i = 0; i < NR_EXCLUSIVE; i++) {
			ASSERT_EQ(1, add_exclusive(&self->q[i], s[0],
						   variant->mode | flags));
			wait_in(i);
		}
		close(s[1]);
		for (int i = 0; i < NR_EXCLUSIVE; i++) {
			ASSERT_TRUE(waiter_join(&self->w[i]))
				TH_LOG("queue %d was not told", i);
			EXPECT_EQ(1, self->w[i].ret);
		}
		close(s[0]);
	}
}

TEST_F(exclusive, registration_is_not_modified)
{
	const __u32 flags = variant->mode | KEVENT_EXCLUSIVE;
	struct kq *q = &self->q[0];
	struct ukevent ev;

	ASSERT_EQ(1, kq_add_mode(q, self->fd, EPOLLIN, flags, 1));
	EXPECT_EQ(-EEXIST, kq_add_mode(q, self->fd, EPOLLIN, flags, 2));
	EXPECT_EQ(-EINVAL, kq_mod_mode(q, self->fd, EPOLLIN, flags, 2));
	EXPECT_EQ(-EINVAL, kq_mod_mode(q, self->fd, EPOLLIN, variant->mode, 2));
	EXPECT_EQ(-EINVAL, kq_set_mode(q, self->fd, EPOLLIN, flags, 2));
	EXPECT_EQ(-EINVAL, kq_set_mode(q, self->fd, EPOLLIN, variant->mode, 2));
	signal_eventfd(self->fd);
	ASSERT_EQ(1, kq_getevents(q, &ev, 1, 1, PATIENCE_MS));
	EXPECT_EQ(1, ev.user_data);
	EXPECT_EQ(flags, ev.flags);
	EXPECT_EQ(1, kq_del(q, self->fd));
	/* It cannot become one either. */
	ASSERT_EQ(1, kq_add_mode(q, self->fd, EPOLLIN, variant->mode, 1));
	EXPECT_EQ(-EINVAL, kq_mod_mode(q, self->fd, EPOLLIN, flags, 2));
	EXPECT_EQ(-EINVAL, kq_set_mode(q, self->fd, EPOLLIN, flags, 2));
}

TEST_F(exclusive, registration_is_for_reading_and_writing_alone)
{
	const __u32 flags = variant->mode | KEVENT_EXCLUSIVE;
	static const __u32 good[] = {
		0, EPOLLIN, EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP,
	};
	static const __u32 bad[] = {
		EPOLLPRI, EPOLLRDHUP, EPOLLIN | EPOLLRDNORM, EPOLLWRBAND,
		EPOLLMSG,
	};
	struct kq *q = &self->q[0];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, kq_add_mode(q, self->fd, bad[i], flags, 0))
			TH_LOG("events %#x", bad[i]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		EXPECT_EQ(1, kq_add_mode(q, self->fd, good[i], flags, 0))
			TH_LOG("events %#x", good[i]);
		EXPECT_EQ(1, kq_del(q, self->fd));
	}
	/* Turns are taken only by who is told alone. */
	EXPECT_EQ(-EINVAL, kq_add_mode(q, self->fd, EPOLLIN,
				       variant->mode | KEVENT_ROUND_ROBIN, 0));
}

/*
 * Processes that share a listening socket, each with a queue of its own
 */

#define WORKERS 3
#define CONNECTIONS 36

/* In shared memory */
struct worker {
	pid_t pid;
	__u32 waits;		/* how often it went to wait */
	__u32 wakes;		/* how often it came back */
	__u32 accepted;
};

FIXTURE(workers) {
	struct worker *w;
	struct sockaddr_un addr;
	socklen_t addr_len;
	int listener;
};

FIXTURE_VARIANT(workers) {
	__u32 mode;
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(workers, all_told_by_ring) { KEVENT_EDGE, BY_RING };
FIXTURE_VARIANT_ADD(workers, all_told_of_level) { KEVENT_LEVEL, BY_SYSCALL };

FIXTURE_VARIANT_ADD(workers, first_told_by_ring) {
	KEVENT_EDGE | KEVENT_EXCLUSIVE, BY_RING,
};

FIXTURE_VARIANT_ADD(workers, first_told_by_call) {
	KEVENT_EDGE | KEVENT_EXCLUSIVE, BY_SYSCALL,
};

FIXTURE_VARIANT_ADD(workers, first_told_of_level) {
	KEVENT_LEVEL | KEVENT_EXCLUSIVE, BY_SYSCALL,
};

FIXTURE_VARIANT_ADD(workers, in_turn_by_ring) {
	KEVENT_EDGE | KEVENT_EXCLUSIVE | KEVENT_ROUND_ROBIN, BY_RING,
};

FIXTURE_VARIANT_ADD(workers, in_turn_by_call) {
	KEVENT_EDGE | KEVENT_EXCLUSIVE | KEVENT_ROUND_ROBIN, BY_SYSCALL,
};

FIXTURE_VARIANT_ADD(workers, in_turn_of_level) {
	KEVENT_LEVEL | KEVENT_EXCLUSIVE | KEVENT_ROUND_ROBIN, BY_SYSCALL,
};

static __u32 get(const __u32 *count)
{
	return __atomic_load_n(count, __ATOMIC_ACQUIRE);
}

static void count_up(__u32 *count)
{
	__atomic_fetch_add(count, 1, __ATOMIC_ACQ_REL);
}

/* Tells each who connects the number of the worker. */
static void work(struct worker *me, char number, int listener, __u32 mode,
		 enum collect_by by)
{
	struct ukevent ev;
	struct kq q;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (kq_open(&q, 1) ||
	    kq_add_mode(&q, listener, EPOLLIN, mode, 0) != 1)
		_exit(1);
	for (;;) {
		int nr, s;

		count_up(&me->waits);
		if (by == BY_RING)
			nr = kq_getevents(&q, NULL, 1, 0, 4 * PATIENCE_MS);
		else
			nr = kq_getevents(&q, &ev, 1, 1, 4 * PATIENCE_MS);
		count_up(&me->wakes);
		if (nr != 1)
			_exit(2);
		if (by == BY_RING)
			kq_collect(&q, BY_RING, &ev, 1);
		while ((s = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
			count_up(&me->accepted);
			if (write(s, &number, 1) != 1)
				_exit(3);
			close(s);
		}
	}
}

/* It is in the call, or it is not there any more. */
static bool worker_waits(struct worker *w)
{
	__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
	char path[64];

	if (!w->pid)
		return true;
	snprintf(path, sizeof(path), "/proc/%d/stat", w->pid);
	while (now_ns() < end) {
		if (get(&w->waits) == get(&w->wakes) + 1 &&
		    task_state(path) == 'S')
			return true;
		sched_yield();
	}
	return false;
}

static void end_worker(struct worker *w)
{
	if (w->pid > 0) {
		kill(w->pid, SIGKILL);
		reap(w->pid);
	}
	w->pid = 0;
}

FIXTURE_SETUP(workers)
{
	struct kq q;

	if (!kq_setup(_metadata, &q, 1))
		return;
	kq_close(&q);
	self->w = mmap(NULL, WORKERS * sizeof(*self->w), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->w);

	self->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC |
				SOCK_NONBLOCK, 0);
	ASSERT_LE(0, self->listener);
	self->addr.sun_family = AF_UNIX;
	self->addr_len = sizeof(self->addr);
	/* The kernel chooses a name that is in no file system. */
	ASSERT_EQ(0, bind(self->listener, (struct sockaddr *)&self->addr,
			  sizeof(self->addr.sun_family)));
	ASSERT_EQ(0, listen(self->listener, CONNECTIONS));
	ASSERT_EQ(0, getsockname(self->listener,
				 (struct sockaddr *)&self->addr,
				 &self->addr_len));

	/* Registered in this order */
	for (int i = 0; i < WORKERS; i++) {
		pid_t pid = fork();

		ASSERT_LE(0, pid);
		if (!pid)
			work(&self->w[i], i, self->listener, variant->mode,
			     variant->by);
		self->w[i].pid = pid;
		ASSERT_TRUE(worker_waits(&self->w[i]));
	}
}

FIXTURE_TEARDOWN(workers)
{
	for (int i = 0; i < WORKERS; i++)
		end_worker(&self->w[i]);
}

static int connect_to(const struct sockaddr_un *addr, socklen_t len)
{
	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (s >= 0 && connect(s, (const struct sockaddr *)addr, len)) {
		close(s);
		return -1;
	}
	return s;
}

/* Which worker accepted it; negative if none did */
static int accepted_by(int s)
{
	struct pollfd pfd = { .fd = s, .events = POLLIN };
	char number = -1;

	if (poll(&pfd, 1, PATIENCE_MS) == 1 && read(s, &number, 1) != 1)
		number = -1;
	close(s);
	return number;
}

static struct worker sum_of(const struct worker *w)
{
	struct worker sum = { };

	for (int i = 0; i < WORKERS; i++) {
		sum.wakes += get(&w[i].wakes);
		sum.accepted += get(&w[i].accepted);
	}
	return sum;
}

TEST_F(workers, share_connections_that_come_one_by_one)
{
	struct worker before = sum_of(self->w), after;
	int by[WORKERS] = { };
	__u32 wakes;

	for (int i = 0; i < CONNECTIONS; i++) {
		int who;

		for (int j = 0; j < WORKERS; j++)
			ASSERT_TRUE(worker_waits(&self->w[j]));
		who = accepted_by(connect_to(&self->addr, self->addr_len));
		ASSERT_LE(0, who)
			TH_LOG("connection %d was not accepted", i);
		by[who]++;
	}
	for (int j = 0; j < WORKERS; j++)
		ASSERT_TRUE(worker_waits(&self->w[j]));
	after = sum_of(self->w);
	wakes = after.wakes - before.wakes;
	EXPECT_EQ(CONNECTIONS, after.accepted);
	EXPECT_GE(wakes, CONNECTIONS);
	if (!(variant->mode & KEVENT_EXCLUSIVE))
		return;

	/* Nobody else is woken, give or take a few. */
	EXPECT_LE(wakes, CONNECTIONS + CONNECTIONS / 4);
	if (variant->mode & KEVENT_ROUND_ROBIN) {
		for (int j = 0; j < WORKERS; j++) {
			EXPECT_GE(by[j], CONNECTIONS / WORKERS / 2)
				TH_LOG("worker %d accepted %d", j, by[j]);
		}
	} else {
		EXPECT_GE(by[0], CONNECTIONS - CONNECTIONS / 4)
			TH_LOG("the first worker accepted %d", by[0]);
	}
}

TEST_F(workers, leave_no_connection_of_a_burst_waiting)
{
	for (int burst = 0; burst < 4; burst++) {
		int s[CONNECTIONS];

		for (int i = 0; i < CONNECTIONS; i++) {
			s[i] = connect_to(&self->addr, self->addr_len);
			ASSERT_LE(0, s[i]);
		}
		for (int i = 0; i < CONNECTIONS; i++) {
			ASSERT_LE(0, accepted_by(s[i]))
				TH_LOG("burst %d: connection %d", burst, i);
		}
	}
	EXPECT_EQ(4 * CONNECTIONS, sum_of(self->w).accepted);
}

TEST_F(workers, that_die_are_replaced_by_the_next)
{
	for (int dead = 0; dead < WORKERS; dead++) {
		for (int j = dead; j < WORKERS; j++)
			ASSERT_TRUE(worker_waits(&self->w[j]));
		for (int i = 0; i < 4; i++) {
			int s = connect_to(&self->addr, self->addr_len);

			ASSERT_LE(dead, accepted_by(s))
				TH_LOG("without %d workers", dead);
		}
		end_worker(&self->w[dead]);
	}
}

/*
 * Several wait at one queue.
 */

#define WAITERS 3

FIXTURE(order) {
	struct kq q;
	struct waiter w[WAITERS];
	int fd;
};

FIXTURE_VARIANT(order) {
	__u32 init_flags;
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(order, turns_ring) { 0, BY_RING };
FIXTURE_VARIANT_ADD(order, turns_call) { 0, BY_SYSCALL };
FIXTURE_VARIANT_ADD(order, lifo_ring) { KEVENT_INIT_LIFO, BY_RING };
FIXTURE_VARIANT_ADD(order, lifo_call) { KEVENT_INIT_LIFO, BY_SYSCALL };

FIXTURE_SETUP(order)
{
	self->fd = open_eventfd();
	ASSERT_LE(0, self->fd);
	if (kq_setup_flags(_metadata, &self->q, SLOTS, variant->init_flags))
		ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 0));
}

FIXTURE_TEARDOWN(order)
{
	kq_close(&self->q);
}

/* Which of them is woken by an event; they are to be one. */
static int who_is_woken(struct __test_metadata *_metadata, struct kq *q,
			struct waiter *w, int fd)
{
	struct ukevent ev;
	unsigned int ended;
	int i;

	signal_eventfd(fd);
	ended = who_ends(w, WAITERS);
	ASSERT_EQ(1, __builtin_popcount(ended))
		TH_LOG("%#x were woken", ended);
	i = __builtin_ctz(ended);
	ASSERT_TRUE(waiter_join(&w[i]));
	EXPECT_EQ(1, w[i].ret);
	if (w[i].wait_only)
		EXPECT_EQ(1, kq_collect(q, BY_RING, &ev, 1));
	w[i].q = NULL;
	drain_eventfd(fd);
	return i;
}

#define woken() who_is_woken(_metadata, &self->q, self->w, self->fd)
#define wait_as(i) ASSERT_TRUE(wait_at(&self->w[i], &self->q, variant->by))

TEST_F(order, of_waiters_is_what_was_asked_for)
{
	for (int i = 0; i < WAITERS; i++)
		wait_as(i);
	if (variant->init_flags & KEVENT_INIT_LIFO) {
		for (int i = 0; i < 4; i++) {
			EXPECT_EQ(WAITERS - 1, woken());
			wait_as(WAITERS - 1);
		}
		for (int i = WAITERS - 1; i >= 0; i--)
			EXPECT_EQ(i, woken());
		/* Who came last, not who has a number */
		wait_as(1);
		wait_as(2);
		wait_as(0);
		EXPECT_EQ(0, woken());
		EXPECT_EQ(2, woken());
		EXPECT_EQ(1, woken());
	} else {
		for (int i = 0; i < 3 * WAITERS; i++) {
			EXPECT_EQ(i % WAITERS, woken())
				TH_LOG("round %d", i);
			wait_as(i % WAITERS);
		}
		for (int i = 0; i < WAITERS; i++)
			EXPECT_EQ(i, woken());
		wait_as(1);
		wait_as(2);
		wait_as(0);
		EXPECT_EQ(1, woken());
		EXPECT_EQ(2, woken());
		EXPECT_EQ(0, woken());
	}
}

/*
 * Many collect, and each event goes to one of them.
 */

#define COLLECTORS 3
#define ROUNDS 300

struct race {
	struct kq *q;
	enum collect_by by[COLLECTORS];
	int next;		/* number of the next collector to start */
	int seen[ROUNDS];	/* how often each event was collected */
	int wrong;
	int stop;
};

static void *racer_fn(void *arg)
{
	struct race *r = arg;
	int me = __atomic_fetch_add(&r->next, 1, __ATOMIC_RELAXED);
	struct kq q = *r->q;	/* with a cursor of its own */
	struct ukevent evs[2];

	while (!__atomic_load_n(&r->stop, __ATOMIC_ACQUIRE)) {
		int nr;

		if (r->by[me] == BY_SYSCALL)
			nr = kq_getevents(&q, evs, 1, 2, 5);
		else
			nr = kq_collect(&q, BY_RING, evs, 2);
		if (!nr)
			sched_yield();
		if (nr < 0)
			__atomic_fetch_add(&r->wrong, 1, __ATOMIC_RELAXED);
		for (int i = 0; i < nr; i++) {
			if (evs[i].user_data < ROUNDS)
				__atomic_fetch_add(&r->seen[evs[i].user_data],
						   1, __ATOMIC_RELEASE);
			else
				__atomic_fetch_add(&r->wrong, 1,
						   __ATOMIC_RELAXED);
		}
	}
	return NULL;
}

FIXTURE(once) {
	struct kq q;
	int fd;
};

FIXTURE_VARIANT(once) {
	__u32 mode;
	enum collect_by by[COLLECTORS];
};

FIXTURE_VARIANT_ADD(once, level_one_shot) {
	KEVENT_LEVEL | KEVENT_ONESHOT, { BY_SYSCALL, BY_SYSCALL, BY_SYSCALL },
};

FIXTURE_VARIANT_ADD(once, level_dispatch) {
	KEVENT_LEVEL | KEVENT_DISPATCH, { BY_SYSCALL, BY_SYSCALL, BY_SYSCALL },
};

FIXTURE_VARIANT_ADD(once, edge_one_shot_ring) {
	KEVENT_EDGE | KEVENT_ONESHOT, { BY_RING, BY_RING, BY_RING },
};

FIXTURE_VARIANT_ADD(once, edge_dispatch_ring) {
	KEVENT_EDGE | KEVENT_DISPATCH, { BY_RING, BY_RING, BY_RING },
};

FIXTURE_VARIANT_ADD(once, edge_one_shot_mixed) {
	KEVENT_EDGE | KEVENT_ONESHOT, { BY_RING, BY_SYSCALL, BY_SYSCALL },
};

FIXTURE_VARIANT_ADD(once, edge_dispatch_mixed) {
	KEVENT_EDGE | KEVENT_DISPATCH, { BY_RING, BY_SYSCALL, BY_SYSCALL },
};

FIXTURE_SETUP(once)
{
	self->fd = open_eventfd();
	ASSERT_LE(0, self->fd);
	signal_eventfd(self->fd);
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(once)
{
	kq_close(&self->q);
}

TEST_F_TIMEOUT(once, is_how_often_an_event_is_collected, 60)
{
	const bool ends = variant->mode & KEVENT_ONESHOT;
	struct race r = { .q = &self->q };
	pthread_t threads[COLLECTORS];

	memcpy(r.by, variant->by, sizeof(r.by));
	for (int i = 0; i < COLLECTORS; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, racer_fn, &r));
	for (int i = 0; i < ROUNDS; i++) {
		__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
		int ret;

		/* It was claimed, so it is registered no more, or disabled. */
		if (ends || !i)
			ret = kq_add_mode(&self->q, self->fd, EPOLLIN,
					  variant->mode, i);
		else
			ret = kq_mod_mode(&self->q, self->fd, EPOLLIN,
					  variant->mode, i);
		ASSERT_EQ(1, ret)
			TH_LOG("round %d", i);
		signal_eventfd(self->fd);
		while (!__atomic_load_n(&r.seen[i], __ATOMIC_ACQUIRE)) {
			ASSERT_LT(now_ns(), end)
				TH_LOG("event %d was lost", i);
			sched_yield();
		}
		signal_eventfd(self->fd);
	}
	sleep_ms(SETTLE_MS);
	__atomic_store_n(&r.stop, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < COLLECTORS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < ROUNDS; i++) {
		EXPECT_EQ(1, r.seen[i])
			TH_LOG("event %d", i);
	}
	EXPECT_EQ(0, r.wrong);
	EXPECT_EQ(ends ? -ENOENT : 1, kq_del(&self->q, self->fd));
}

/*
 * The event loop that these modes are for: whoever gets an event has the source
 * to itself until it says that it is done.
 */

#define CREW_SOURCES 4
#define CREW_WRITES 5000

struct crew {
	struct kq *q;
	__u32 mode;
	enum collect_by by[COLLECTORS];
	int next;
	int fd[CREW_SOURCES];
	int owned[CREW_SOURCES];
	__u64 sum;
	int shared;		/* sources that two had at the same time */
	int failed;		/* calls */
	int stop;
};

static void crew_serve(struct crew *c, __u64 n)
{
	int ret;

	if (n >= CREW_SOURCES) {
		__atomic_fetch_add(&c->failed, 1, __ATOMIC_RELAXED);
		return;
	}
	if (__atomic_exchange_n(&c->owned[n], 1, __ATOMIC_ACQ_REL))
		__atomic_fetch_add(&c->shared, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&c->sum, drain_eventfd(c->fd[n]), __ATOMIC_RELEASE);
	__atomic_store_n(&c->owned[n], 0, __ATOMIC_RELEASE);
	if (c->mode & KEVENT_ONESHOT)
		ret = kq_add_mode(c->q, c->fd[n], EPOLLIN, c->mode, n);
	else
		ret = kq_op(c->q, KEVENT_SOURCE_FD, KEVENT_OP_ENABLE, c->fd[n],
			    0);
	if (ret != 1)
		__atomic_fetch_add(&c->failed, 1, __ATOMIC_RELAXED);
}

static void *crew_fn(void *arg)
{
	struct crew *c = arg;
	int me = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
	struct kq q = *c->q;	/* with a cursor of its own */
	struct ukevent evs[2];

	while (!__atomic_load_n(&c->stop, __ATOMIC_ACQUIRE)) {
		int nr;

		if (c->by[me] == BY_SYSCALL)
			nr = kq_getevents(&q, evs, 1, 2, MOMENT_MS);
		else
			nr = kq_collect(&q, BY_RING, evs, 2);
		if (!nr && c->by[me] == BY_RING &&
		    kq_getevents(&q, NULL, 1, 0, MOMENT_MS) < 0)
			nr = -1;
		if (nr < 0)
			__atomic_fetch_add(&c->failed, 1, __ATOMIC_RELAXED);
		for (int i = 0; i < nr; i++)
			crew_serve(c, evs[i].user_data);
	}
	return NULL;
}

FIXTURE(crew) {
	struct kq q;
};

FIXTURE_VARIANT(crew) {
	__u32 mode;
	enum collect_by by[COLLECTORS];
};

FIXTURE_VARIANT_ADD(crew, edge_dispatch_ring) {
	KEVENT_EDGE | KEVENT_DISPATCH, { BY_RING, BY_RING, BY_RING },
};

FIXTURE_VARIANT_ADD(crew, edge_dispatch_call) {
	KEVENT_EDGE | KEVENT_DISPATCH, { BY_SYSCALL, BY_SYSCALL, BY_SYSCALL },
};

FIXTURE_VARIANT_ADD(crew, edge_one_shot_ring) {
	KEVENT_EDGE | KEVENT_ONESHOT, { BY_RING, BY_RING, BY_RING },
};

FIXTURE_VARIANT_ADD(crew, edge_one_shot_mixed) {
	KEVENT_EDGE | KEVENT_ONESHOT, { BY_RING, BY_SYSCALL, BY_SYSCALL },
};

FIXTURE_VARIANT_ADD(crew, level_dispatch) {
	KEVENT_LEVEL | KEVENT_DISPATCH, { BY_SYSCALL, BY_SYSCALL, BY_SYSCALL },
};

FIXTURE_VARIANT_ADD(crew, level_one_shot) {
	KEVENT_LEVEL | KEVENT_ONESHOT, { BY_SYSCALL, BY_SYSCALL, BY_SYSCALL },
};

/* As many slots as sources: reservations that are not given back are missed. */
FIXTURE_SETUP(crew)
{
	kq_setup(_metadata, &self->q, CREW_SOURCES);
}

FIXTURE_TEARDOWN(crew)
{
	kq_close(&self->q);
}

TEST_F_TIMEOUT(crew, member_has_a_source_to_itself, 60)
{
	struct crew c = { .q = &self->q, .mode = variant->mode };
	pthread_t threads[COLLECTORS];
	__u64 sum = 0, now;
	__s64 last;

	memcpy(c.by, variant->by, sizeof(c.by));
	for (int i = 0; i < CREW_SOURCES; i++) {
		c.fd[i] = open_eventfd();
		ASSERT_LE(0, c.fd[i]);
		ASSERT_EQ(1, kq_add_mode(&self->q, c.fd[i], EPOLLIN, c.mode,
					 i));
	}
	for (int i = 0; i < COLLECTORS; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, crew_fn, &c));
	for (int i = 0; i < CREW_WRITES; i++)
		signal_eventfd(c.fd[i % CREW_SOURCES]);
	last = now_ns();
	do {
		sleep_ms(1);
		now = __atomic_load_n(&c.sum, __ATOMIC_ACQUIRE);
		if (now != sum)
			last = now_ns();
		sum = now;
	} while (sum < CREW_WRITES &&
		 now_ns() - last < PATIENCE_MS * NSEC_PER_MSEC);
	__atomic_store_n(&c.stop, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < COLLECTORS; i++)
		pthread_join(threads[i], NULL);
	EXPECT_EQ(CREW_WRITES, c.sum);
	EXPECT_EQ(0, c.shared);
	EXPECT_EQ(0, c.failed);
	for (int i = 0; i < CREW_SOURCES; i++) {
		EXPECT_EQ(1, kq_del(&self->q, c.fd[i]))
			TH_LOG("source %d is not registered", i);
	}
}

/*
 * Counts survive: what is triggered is reported once, however the registration
 * is disabled and enabled meanwhile.
 */

#define TRIGGERS 4000
#define TOGGLES 600

struct ledger {
	struct kq *q;
	enum collect_by by[COLLECTORS];
	bool dispatch;
	int next;
	__u64 sum;
	int failed;
	int stop;
};

static void ledger_op(struct ledger *l, __u16 op)
{
	if (kq_op(l->q, KEVENT_SOURCE_USER, op, IDENT, 0) != 1)
		__atomic_fetch_add(&l->failed, 1, __ATOMIC_RELAXED);
}

static void *trigger_fn(void *arg)
{
	struct ledger *l = arg;

	for (int i = 0; i < TRIGGERS; i++)
		if (kq_trigger(l->q, IDENT, 1, 0) != 1)
			__atomic_fetch_add(&l->failed, 1, __ATOMIC_RELAXED);
	return NULL;
}

static void *toggle_fn(void *arg)
{
	struct ledger *l = arg;

	for (int i = 0; i < TOGGLES; i++) {
		ledger_op(l, KEVENT_OP_DISABLE);
		sched_yield();
		ledger_op(l, KEVENT_OP_ENABLE);
		sched_yield();
	}
	return NULL;
}

static void *tally_fn(void *arg)
{
	struct ledger *l = arg;
	int me = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
	struct kq q = *l->q;	/* with a cursor of its own */
	struct ukevent ev;

	while (!__atomic_load_n(&l->stop, __ATOMIC_ACQUIRE)) {
		int nr;

		if (l->by[me] == BY_SYSCALL)
			nr = kq_getevents(&q, &ev, 1, 1, 5);
		else
			nr = kq_collect(&q, BY_RING, &ev, 1);
		if (nr == 1) {
			__atomic_fetch_add(&l->sum, ev.events,
					   __ATOMIC_RELEASE);
			if (l->dispatch)
				ledger_op(l, KEVENT_OP_ENABLE);
		} else {
			sched_yield();
		}
	}
	return NULL;
}

FIXTURE(ledger) {
	struct kq q;
};

FIXTURE_VARIANT(ledger) {
	bool dispatch;
	bool toggle;
	enum collect_by by[COLLECTORS];
};

FIXTURE_VARIANT_ADD(ledger, disabled_and_enabled_ring) {
	false, true, { BY_RING, BY_RING, BY_RING },
};

FIXTURE_VARIANT_ADD(ledger, disabled_and_enabled_mixed) {
	false, true, { BY_RING, BY_SYSCALL, BY_SYSCALL },
};

FIXTURE_VARIANT_ADD(ledger, dispatch_ring) {
	true, false, { BY_RING, BY_RING, BY_RING },
};

FIXTURE_VARIANT_ADD(ledger, dispatch_mixed) {
	true, false, { BY_RING, BY_SYSCALL, BY_SYSCALL },
};

FIXTURE_VARIANT_ADD(ledger, dispatch_disabled_and_enabled) {
	true, true, { BY_RING, BY_SYSCALL, BY_SYSCALL },
};

FIXTURE_SETUP(ledger)
{
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(ledger)
{
	kq_close(&self->q);
}

TEST_F_TIMEOUT(ledger, of_counts_is_balanced, 60)
{
	struct ledger l = { .q = &self->q, .dispatch = variant->dispatch };
	pthread_t trigger, toggle, threads[COLLECTORS];
	__s64 end;

	memcpy(l.by, variant->by, sizeof(l.by));
	ASSERT_EQ(1, kq_add_user(&self->q, IDENT, KEVENT_USER_COUNT,
				 l.dispatch ? KEVENT_DISPATCH : 0, 0));
	for (int i = 0; i < COLLECTORS; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, tally_fn, &l));
	ASSERT_EQ(0, pthread_create(&trigger, NULL, trigger_fn, &l));
	if (variant->toggle) {
		ASSERT_EQ(0, pthread_create(&toggle, NULL, toggle_fn, &l));
		pthread_join(toggle, NULL);
	}
	pthread_join(trigger, NULL);
	ledger_op(&l, KEVENT_OP_ENABLE);

	end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
	while (__atomic_load_n(&l.sum, __ATOMIC_ACQUIRE) < TRIGGERS &&
	       now_ns() < end) {
		/* It may wait behind events that were taken back. */
		kq_getevents(&self->q, NULL, 0, 0, 0);
		sleep_ms(1);
	}
	sleep_ms(SETTLE_MS);
	__atomic_store_n(&l.stop, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < COLLECTORS; i++)
		pthread_join(threads[i], NULL);
	EXPECT_EQ(TRIGGERS, l.sum);
	EXPECT_EQ(0, l.failed);
	want_none(&self->q, BY_SYSCALL);
}

TEST_HARNESS_MAIN
