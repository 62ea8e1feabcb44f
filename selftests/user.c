// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: events that programs trigger, from wherever they have the queue, and
 * the wake-up that goes to everybody who waits.
 */
#include "kevent_util.h"

#include <sys/prctl.h>

#define SLOTS 16
#define UDATA 0x123456789abcdef0ULL
#define IDENT 0xfedcba9876543210ULL

#define COUNT KEVENT_USER_COUNT
#define FLAGS KEVENT_USER_FLAGS

#define TRIGGER KEVENT_NOTE_TRIGGER
#define FFAND KEVENT_NOTE_FFAND
#define FFOR KEVENT_NOTE_FFOR
#define FFCOPY KEVENT_NOTE_FFCOPY
#define ALL KEVENT_NOTE_FFLAGS

FIXTURE(user) {
	struct kq q;
	enum collect_by by;
};

FIXTURE_VARIANT(user) {
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(user, ring) { BY_RING };
FIXTURE_VARIANT_ADD(user, call) { BY_SYSCALL };

FIXTURE_SETUP(user)
{
	self->by = variant->by;
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(user)
{
	kq_close(&self->q);
}

static int user_op(const struct kq *q, __u16 op, __u64 ident)
{
	return kq_op(q, KEVENT_SOURCE_USER, op, ident, 0);
}

static int del_user(const struct kq *q, __u64 ident)
{
	return user_op(q, KEVENT_OP_DEL, ident);
}

/* As kq_add_user(), with the first flags, and for KEVENT_OP_MOD and _SET too */
static int set_user(const struct kq *q, __u16 op, __u64 ident, __u32 kind,
		    __u32 fflags, __u32 mode, __u64 udata)
{
	struct ukevent change = kq_user_change(op, ident, kind, mode, udata);

	change.fflags = fflags;
	return kq_apply(q, change);
}

static int add_flags(const struct kq *q, __u64 ident, __u32 fflags)
{
	return set_user(q, KEVENT_OP_ADD, ident, FLAGS, fflags, 0, UDATA);
}

static int trigger_flags(const struct kq *q, __u64 ident, __u32 fflags)
{
	return kq_trigger(q, ident, 0, fflags);
}

/* The event there is has to be this, and there is no other. */
#define want(value) \
	want_value(&self->q, self->by, KEVENT_SOURCE_USER, IDENT, value, UDATA)
#define want_nothing() want_none(&self->q, self->by)

/* The event of flags that were triggered */
#define want_flags(flags) want(TRIGGER | (flags))

/*
 * Counts
 */

TEST_F(user, counts_what_is_triggered)
{
	ASSERT_EQ(1, kq_add_user(&self->q, IDENT, COUNT, 0, UDATA));
	want_nothing();
	for (__u32 n = 1; n < 5; n++) {
		ASSERT_EQ(1, kq_trigger(&self->q, IDENT, n, 0));
		want(n);
		want_nothing();
	}
	/* What was not claimed is one event. */
	for (__u32 n = 1; n <= 100; n++)
		ASSERT_EQ(1, kq_trigger(&self->q, IDENT, n, 0));
	want(5050);
	want_nothing();
	EXPECT_EQ(1, del_user(&self->q, IDENT));
}

TEST_F(user, count_saturates)
{
	static const __u64 too_many[] = {
		KEVENT_COUNT_MAX, KEVENT_COUNT_MAX + 1ULL, 0xffffffffULL,
		0x100000000ULL, 0x100000001ULL, 1ULL << 63, ~0ULL,
	};

	ASSERT_EQ(1, kq_add_user(&self->q, IDENT, COUNT, 0, UDATA));
	for (size_t i = 0; i < ARRAY_SIZE(too_many); i++) {
		/* Alone, and with more before and after */
		ASSERT_EQ(1, kq_trigger(&self->q, IDENT, too_many[i], 0));
		want(KEVENT_COUNT_MAX);
		ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 7, 0));
		ASSERT_EQ(1, kq_trigger(&self->q, IDENT, too_many[i], 0));
		ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 1, 0));
		want(KEVENT_COUNT_MAX);
		want_nothing();

		/* While it is disabled */
		ASSERT_EQ(1, user_op(&self->q, KEVENT_OP_DISABLE, IDENT));
		ASSERT_EQ(1, kq_trigger(&self->q, IDENT, too_many[i], 0));
		ASSERT_EQ(1, kq_trigger(&self->q, IDENT, too_many[i], 0));
		want_nothing();
		ASSERT_EQ(1, user_op(&self->q, KEVENT_OP_ENABLE, IDENT));
		want(KEVENT_COUNT_MAX);
	}
	ASSERT_EQ(1, kq_trigger(&self->q, IDENT, KEVENT_COUNT_MAX - 1, 0));
	want(KEVENT_COUNT_MAX - 1);
	ASSERT_EQ(1, kq_trigger(&self->q, IDENT, KEVENT_COUNT_MAX - 1, 0));
	ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 1, 0));
	want(KEVENT_COUNT_MAX);
	ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 1, 0));
	want(1);
}

/* In an event that waits behind the full ring */
TEST_F(user, count_that_waits_is_added_to_and_saturates)
{
	struct ukevent ev;
	__u64 first;
	struct kq q;

	ASSERT_EQ(0, kq_open_flags(&q, 1, KEVENT_INIT_OVERCOMMIT, 0));
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, kq_add_user(&q, i, COUNT, 0, UDATA));
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, kq_trigger(&q, i, 1, 0));
	ASSERT_EQ(1, kq_trigger(&q, 1, 2, 0));
	ASSERT_EQ(1, kq_trigger(&q, 2, KEVENT_COUNT_MAX, 0));
	for (first = 0; first < 3; first++) {
		static const __u32 values[] = { 1, 3, KEVENT_COUNT_MAX };

		ASSERT_EQ(0, kq_let_in(&q));
		ASSERT_EQ(1, kq_next(&q, self->by, &ev));
		EXPECT_EQ(first, ev.ident);
		EXPECT_EQ(values[first], ev.events);
	}
	want_none(&q, self->by);
	kq_close(&q);
}

/*
 * Flags
 */

TEST_F(user, flags_can_be_changed_and_reported_by_each_operation)
{
	static const struct {
		__u32 what;
		__u32 flags;	/* those after it */
	} steps[] = {
		{ 0, 0x123456 },		/* nothing at all */
		{ KEVENT_NOTE_FFNOP | ALL, 0x123456 },
		{ FFOR | 0xff0000, 0xff3456 },
		{ FFAND | 0xf0ffff, 0xf03456 },
		{ FFCOPY | 0xabcdef, 0xabcdef },
		{ FFOR, 0xabcdef },
		{ FFAND | ALL, 0xabcdef },
		{ FFAND, 0 },
		{ FFOR | ALL, ALL },
		{ FFCOPY, 0 },
		{ FFOR | 1, 1 },
		{ FFOR | 2, 3 },
		{ FFAND | 6, 2 },
		{ FFCOPY | 0x800000, 0x800000 },
	};

	ASSERT_EQ(1, add_flags(&self->q, IDENT, 0x123456));
	want_nothing();
	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		__u32 what = steps[i].what, flags = steps[i].flags;

		/* Only changed; the change is seen by the next trigger. */
		ASSERT_EQ(1, trigger_flags(&self->q, IDENT, what));
		want_nothing();
		ASSERT_EQ(1, trigger_flags(&self->q, IDENT, TRIGGER));
		want_flags(flags);
		want_nothing();
	}
	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		__u32 what = steps[i].what, flags = steps[i].flags;

		if (i < 2)
			flags = 0x800000;
		else if (i == 2)
			flags = 0xff0000;
		else if (i == 3)
			flags = 0xf00000;
		/* In one go */
		ASSERT_EQ(1, trigger_flags(&self->q, IDENT, what | TRIGGER));
		want_flags(flags);
		want_nothing();
	}
}

TEST_F(user, flags_stay_when_the_event_is_claimed)
{
	ASSERT_EQ(1, add_flags(&self->q, IDENT, 5));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFOR | 2 | TRIGGER));
	for (int i = 0; i < 3; i++) {
		want_flags(7);
		want_nothing();
		ASSERT_EQ(1, trigger_flags(&self->q, IDENT, TRIGGER));
	}
	want_flags(7);
}

/* With no flag set, it is an event nevertheless. */
TEST_F(user, flags_can_be_none)
{
	ASSERT_EQ(1, add_flags(&self->q, IDENT, 0));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, TRIGGER));
	want_flags(0);
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFCOPY | 9 | TRIGGER));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFAND));
	want_flags(0);
	want_nothing();
}

/* By triggers that report and by those that do not */
TEST_F(user, unclaimed_event_shows_the_new_flags)
{
	ASSERT_EQ(1, add_flags(&self->q, IDENT, 0));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFCOPY | 1 | TRIGGER));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFOR | 6 | TRIGGER));
	want_flags(7);
	want_nothing();
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, TRIGGER));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFAND | 4));
	want_flags(4);
	want_nothing();
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, TRIGGER));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFCOPY | 0xabc));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFOR | 0xabc000));
	want_flags(0xabcabc);
	want_nothing();
}

TEST_F(user, unclaimed_event_behind_the_full_ring_shows_the_new_flags)
{
	struct ukevent ev;
	struct kq q;

	ASSERT_EQ(0, kq_open_flags(&q, 1, KEVENT_INIT_OVERCOMMIT, 0));
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(1, add_flags(&q, i, 1));
		ASSERT_EQ(1, trigger_flags(&q, i, TRIGGER));
	}
	ASSERT_EQ(1, trigger_flags(&q, 1, FFOR | 2));
	ASSERT_EQ(1, kq_next(&q, self->by, &ev));
	EXPECT_EQ(0, ev.ident);
	EXPECT_EQ(TRIGGER | 1, ev.events);
	ASSERT_EQ(1, trigger_flags(&q, 1, FFOR | 4 | TRIGGER));
	ASSERT_EQ(0, kq_let_in(&q));
	ASSERT_EQ(1, trigger_flags(&q, 1, FFOR | 8));
	ASSERT_EQ(1, kq_next(&q, self->by, &ev));
	EXPECT_EQ(1, ev.ident);
	EXPECT_EQ(TRIGGER | 15, ev.events);
	want_none(&q, self->by);
	kq_close(&q);
}

/*
 * Both kinds against a model: whatever the order of triggers, claims and
 * switching on and off
 */

struct model {
	__u32 kind;
	__u32 flags;
	__u64 count;
	bool triggered;
	bool enabled;
};

static void model_trigger(struct model *m, __u64 data, __u32 fflags)
{
	__u32 operand = fflags & ALL;

	if (m->kind == COUNT) {
		m->triggered = true;
		m->count += data < KEVENT_COUNT_MAX ? data : KEVENT_COUNT_MAX;
		if (m->count > KEVENT_COUNT_MAX)
			m->count = KEVENT_COUNT_MAX;
		return;
	}
	switch (fflags & KEVENT_NOTE_FFCTRL) {
	case FFAND:
		m->flags &= operand;
		break;
	case FFOR:
		m->flags |= operand;
		break;
	case FFCOPY:
		m->flags = operand;
		break;
	}
	if (fflags & TRIGGER)
		m->triggered = true;
}

/* The value of the event that can be claimed, zero if there is none */
static __u32 model_claim(struct model *m)
{
	__u32 value = m->kind == COUNT ? m->count : m->flags | TRIGGER;

	if (!m->enabled || !m->triggered)
		return 0;
	m->triggered = false;
	m->count = 0;
	return value;
}

TEST_F(user, does_what_a_model_of_it_does)
{
	__u64 random = random_seed();

	for (int k = 0; k < 2; k++) {
		struct model m = { .kind = k ? FLAGS : COUNT, .enabled = true };

		ASSERT_EQ(1, kq_add_user(&self->q, IDENT, m.kind, 0, UDATA));
		for (int i = 0; i < 1500; i++) {
			__u64 r = next_random(&random), data = 0;
			__u32 fflags = 0, value;
			struct ukevent ev = { };
			__u16 op;
			int nr;

			switch (r % 8) {
			case 0:
			case 1:
				nr = kq_collect(&self->q, self->by, &ev, 1);
				value = model_claim(&m);
				ASSERT_EQ(value != 0, nr)
					TH_LOG("step %d", i);
				ASSERT_EQ(value, ev.events)
					TH_LOG("step %d", i);
				break;
			case 2:
				op = r & 256 ? KEVENT_OP_ENABLE :
					       KEVENT_OP_DISABLE;
				ASSERT_EQ(1, user_op(&self->q, op, IDENT));
				m.enabled = op == KEVENT_OP_ENABLE;
				break;
			default:
				if (m.kind == COUNT)
					data = 1 + (r >> 32 >> (r >> 8) % 32);
				else
					fflags = (r >> 32) & (ALL | TRIGGER |
						  KEVENT_NOTE_FFCTRL);
				ASSERT_EQ(1, kq_trigger(&self->q, IDENT, data,
							fflags));
				model_trigger(&m, data, fflags);
			}
		}
		EXPECT_EQ(1, del_user(&self->q, IDENT));
		want_nothing();
	}
}

/*
 * Changes and modes
 */

TEST_F(user, refuses_what_it_does_not_know)
{
	const struct ukevent add = kq_user_change(KEVENT_OP_ADD, 1, COUNT, 0,
						  UDATA);
	static const __u32 bad_flags[] = {
		0, KEVENT_LEVEL, KEVENT_EDGE | KEVENT_LEVEL, KEVENT_ONESHOT,
		KEVENT_EDGE | KEVENT_ONESHOT | KEVENT_DISPATCH,
		KEVENT_EDGE | KEVENT_EXCLUSIVE, KEVENT_EDGE | KEVENT_ROUND_ROBIN,
		KEVENT_EDGE | KEVENT_EXCLUSIVE | KEVENT_ROUND_ROBIN,
		KEVENT_EDGE | KEVENT_ALWAYS_READY, KEVENT_EDGE | 1U << 31,
	};
	static const __u32 bad_kinds[] = {
		0, COUNT | FLAGS, 1U << 2, COUNT | 1U << 31,
	};
	static const __u32 bad_first[] = {
		TRIGGER, FFOR, FFCOPY | 1, 1U << 25, 1U << 29,
	};
	struct ukevent bad;

	for (size_t i = 0; i < ARRAY_SIZE(bad_flags); i++) {
		bad = add;
		bad.flags = bad_flags[i];
		EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad))
			TH_LOG("flags %#x", bad.flags);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad_kinds); i++) {
		bad = add;
		bad.events = bad_kinds[i];
		EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad))
			TH_LOG("events %#x", bad.events);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad_first); i++) {
		bad = add;
		bad.fflags = bad_first[i];
		EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad))
			TH_LOG("fflags %#x of a count", bad.fflags);
		bad.events = FLAGS;
		EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad))
			TH_LOG("fflags %#x of flags", bad.fflags);
	}
	/* These are of the other kind. */
	bad = add;
	bad.fflags = 1;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));
	bad = add;
	bad.data = 1;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));
	bad = add;
	bad.interval = 1;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));
	EXPECT_EQ(-ENOENT, del_user(&self->q, 1));
}

TEST_F(user, trigger_that_is_refused_changes_nothing)
{
	static const __u32 bad_count[] = { TRIGGER, 1, FFOR | 1 };
	static const __u32 bad_flags[] = { 1U << 25, 1U << 28, 1U << 29 };
	struct ukevent bad;
	int efd = open_eventfd();

	ASSERT_EQ(1, kq_add_user(&self->q, 1, COUNT, 0, UDATA));
	ASSERT_EQ(1, add_flags(&self->q, 2, 5));
	ASSERT_EQ(1, kq_add(&self->q, efd, EPOLLIN, UDATA));
	ASSERT_EQ(1, kq_add_timer(&self->q, 3, CLOCK_MONOTONIC,
				  3600 * NSEC_PER_SEC, 0, UDATA));

	EXPECT_EQ(-EINVAL, kq_trigger(&self->q, 1, 0, 0));
	for (size_t i = 0; i < ARRAY_SIZE(bad_count); i++) {
		EXPECT_EQ(-EINVAL, kq_trigger(&self->q, 1, 1, bad_count[i]))
			TH_LOG("fflags %#x", bad_count[i]);
		EXPECT_EQ(-EINVAL, kq_trigger(&self->q, 1, 0, bad_count[i]))
			TH_LOG("fflags %#x", bad_count[i]);
	}
	EXPECT_EQ(-EINVAL, kq_trigger(&self->q, 2, 1, FFOR | 2 | TRIGGER));
	for (size_t i = 0; i < ARRAY_SIZE(bad_flags); i++) {
		EXPECT_EQ(-EINVAL,
			  trigger_flags(&self->q, 2,
					FFOR | 2 | TRIGGER | bad_flags[i]))
			TH_LOG("fflags %#x", bad_flags[i]);
	}

	bad = kq_trigger_change(1, 1, 0);
	bad.flags = KEVENT_EDGE;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));
	bad = kq_trigger_change(1, 1, 0);
	bad.events = COUNT;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));
	bad = kq_trigger_change(1, 1, 0);
	bad.user_data = 1;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));
	bad = kq_trigger_change(1, 1, 0);
	bad.interval = 1;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));

	/* There is no such event, and nothing else can be triggered. */
	EXPECT_EQ(-ENOENT, kq_trigger(&self->q, 3, 1, 0));
	bad = kq_trigger_change(1, 1, 0);
	bad.tag = 1;
	EXPECT_EQ(-ENOENT, kq_apply(&self->q, bad));
	bad = kq_trigger_change(3, 1, 0);
	bad.source = KEVENT_SOURCE_TIMER;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));
	bad = kq_trigger_change(efd, 1, 0);
	bad.source = KEVENT_SOURCE_FD;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));
	bad = kq_trigger_change(0, 1, 0);
	bad.source = KEVENT_SOURCE_QUEUE;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));

	want_nothing();
	ASSERT_EQ(1, trigger_flags(&self->q, 2, TRIGGER));
	want_value(&self->q, self->by, KEVENT_SOURCE_USER, 2, TRIGGER | 5,
		   UDATA);
}

TEST_F(user, is_named_by_its_tag_too)
{
	struct ukevent change, ev;

	for (__u32 tag = 0; tag < 3; tag++) {
		change = kq_user_change(KEVENT_OP_ADD, IDENT, COUNT, 0, tag);
		change.tag = ~tag;
		ASSERT_EQ(1, kq_apply(&self->q, change));
		EXPECT_EQ(-EEXIST, kq_apply(&self->q, change));
	}
	EXPECT_EQ(-ENOENT, kq_trigger(&self->q, IDENT, 1, 0));
	for (__u32 tag = 0; tag < 3; tag++) {
		change = kq_trigger_change(IDENT, tag + 1, 0);
		change.tag = ~tag;
		ASSERT_EQ(1, kq_apply(&self->q, change));
		ASSERT_EQ(1, kq_next(&self->q, self->by, &ev));
		EXPECT_EQ(KEVENT_SOURCE_USER, ev.source);
		EXPECT_EQ(IDENT, ev.ident);
		EXPECT_EQ(~tag, ev.tag);
		EXPECT_EQ(tag, ev.user_data);
		EXPECT_EQ(tag + 1, ev.events);
		EXPECT_EQ(self->by == BY_RING ? 0 : KEVENT_EDGE, ev.flags);
		want_nothing();
	}
}

TEST_F(user, modified_reports_what_is_unclaimed_anew)
{
	ASSERT_EQ(1, kq_add_user(&self->q, IDENT, COUNT, 0, 1));
	ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 3, 0));
	ASSERT_EQ(1, set_user(&self->q, KEVENT_OP_MOD, IDENT, COUNT, 0, 0,
			      UDATA));
	ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 4, 0));
	want(7);
	want_nothing();
	/* What is claimed is not told again. */
	ASSERT_EQ(1, set_user(&self->q, KEVENT_OP_SET, IDENT, COUNT, 0, 0,
			      UDATA));
	want_nothing();
	EXPECT_EQ(1, del_user(&self->q, IDENT));

	ASSERT_EQ(1, set_user(&self->q, KEVENT_OP_SET, IDENT, FLAGS, 1, 0, 1));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, TRIGGER));
	/* The flags are as for a new one. */
	ASSERT_EQ(1, set_user(&self->q, KEVENT_OP_MOD, IDENT, FLAGS, 6, 0,
			      UDATA));
	want_flags(6);
	ASSERT_EQ(1, set_user(&self->q, KEVENT_OP_MOD, IDENT, FLAGS, 8, 0,
			      UDATA));
	want_nothing();
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, TRIGGER));
	want_flags(8);
}

/* What was triggered means nothing to the other kind. */
TEST_F(user, modified_to_the_other_kind_begins_anew)
{
	for (int i = 0; i < 4; i++) {
		__u32 disabled = i % 2 ? KEVENT_DISABLED : 0;

		ASSERT_EQ(1, set_user(&self->q, KEVENT_OP_SET, IDENT, COUNT, 0,
				      disabled, 1));
		ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 3, 0));
		ASSERT_EQ(1, set_user(&self->q, KEVENT_OP_MOD, IDENT, FLAGS, 4,
				      0, UDATA));
		want_nothing();
		EXPECT_EQ(-EINVAL, kq_trigger(&self->q, IDENT, 3, 0));
		ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFOR | 1 | TRIGGER));
		want_flags(5);

		ASSERT_EQ(1, trigger_flags(&self->q, IDENT, TRIGGER));
		ASSERT_EQ(1, set_user(&self->q, KEVENT_OP_MOD, IDENT, COUNT, 0,
				      0, UDATA));
		want_nothing();
		EXPECT_EQ(-EINVAL, trigger_flags(&self->q, IDENT, TRIGGER));
		ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 1, 0));
		want(1);
	}
}

TEST_F(user, triggered_while_disabled_says_so_when_enabled)
{
	ASSERT_EQ(1, kq_add_user(&self->q, IDENT, COUNT, KEVENT_DISABLED,
				 UDATA));
	ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 1, 0));
	ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 2, 0));
	want_nothing();
	ASSERT_EQ(1, user_op(&self->q, KEVENT_OP_ENABLE, IDENT));
	/* Taken back when it is disabled, and kept */
	ASSERT_EQ(1, user_op(&self->q, KEVENT_OP_DISABLE, IDENT));
	want_nothing();
	ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 4, 0));
	ASSERT_EQ(1, user_op(&self->q, KEVENT_OP_ENABLE, IDENT));
	ASSERT_EQ(1, user_op(&self->q, KEVENT_OP_ENABLE, IDENT));
	want(7);
	want_nothing();
	EXPECT_EQ(1, del_user(&self->q, IDENT));

	ASSERT_EQ(1, set_user(&self->q, KEVENT_OP_ADD, IDENT, FLAGS, 1,
			      KEVENT_DISABLED, UDATA));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFOR | 2));
	ASSERT_EQ(1, user_op(&self->q, KEVENT_OP_ENABLE, IDENT));
	/* It was not triggered. */
	want_nothing();
	ASSERT_EQ(1, user_op(&self->q, KEVENT_OP_DISABLE, IDENT));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFOR | 4 | TRIGGER));
	ASSERT_EQ(1, trigger_flags(&self->q, IDENT, FFOR | 8));
	want_nothing();
	ASSERT_EQ(1, user_op(&self->q, KEVENT_OP_ENABLE, IDENT));
	want_flags(15);
	want_nothing();
}

TEST_F(user, one_shot_ends_with_the_claim)
{
	for (int i = 0; i < 40; i++) {
		__u32 kind = i % 2 ? FLAGS : COUNT;

		ASSERT_EQ(1, kq_add_user(&self->q, IDENT, kind, KEVENT_ONESHOT,
					 UDATA));
		for (int n = 0; n < 2; n++)
			ASSERT_EQ(1, kind == COUNT ?
				     kq_trigger(&self->q, IDENT, 1 + n, 0) :
				     trigger_flags(&self->q, IDENT,
						   FFOR | (1 + n) | TRIGGER));
		want(kind == COUNT ? 3 : TRIGGER | 3);
		EXPECT_EQ(-ENOENT, kq_trigger(&self->q, IDENT, 1, 0));
		EXPECT_EQ(-ENOENT, trigger_flags(&self->q, IDENT, TRIGGER));
		EXPECT_EQ(-ENOENT, del_user(&self->q, IDENT));
		want_nothing();
	}
}

TEST_F(user, dispatched_waits_until_it_is_enabled)
{
	ASSERT_EQ(1, kq_add_user(&self->q, IDENT, COUNT, KEVENT_DISPATCH,
				 UDATA));
	for (__u32 i = 1; i < 10; i++) {
		ASSERT_EQ(1, kq_trigger(&self->q, IDENT, i, 0));
		if (i > 1) {
			want_nothing();
			ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 1000, 0));
			ASSERT_EQ(1, user_op(&self->q, KEVENT_OP_ENABLE,
					     IDENT));
			want(1000 + i);
		} else {
			want(i);
		}
		want_nothing();
	}
}

/* A change and its effect in one call */
TEST_F(user, can_be_triggered_by_the_call_that_collects)
{
	struct ukevent changes[3] = {
		kq_user_change(KEVENT_OP_ADD, IDENT, COUNT, 0, UDATA),
		kq_trigger_change(IDENT, 2, 0),
		kq_trigger_change(IDENT, 3, 0),
	};
	struct kevent_getopts opts = kq_opts(0);
	struct ukevent ev;

	opts.changes = (uintptr_t)changes;
	opts.nr_changes = 3;
	ASSERT_EQ(1, kq_getevents_opts(&self->q, &ev, 1, 1, PATIENCE_MS, &opts));
	EXPECT_EQ(5, ev.events);
	EXPECT_EQ(UDATA, ev.user_data);
	want_nothing();
}

/*
 * From other threads and processes
 */

static void *trigger_once(void *arg)
{
	const struct kq *q = arg;

	return (void *)(intptr_t)kq_trigger(q, IDENT, 6, 0);
}

TEST_F(user, of_another_thread_wakes_who_waits)
{
	struct waiter w = { };
	pthread_t thread;
	void *ret;

	ASSERT_EQ(1, kq_add_user(&self->q, IDENT, COUNT, 0, UDATA));
	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 4));
	EXPECT_FALSE(waiter_done(&w));
	ASSERT_EQ(0, pthread_create(&thread, NULL, trigger_once, &self->q));
	pthread_join(thread, &ret);
	EXPECT_EQ(1, (intptr_t)ret);
	ASSERT_TRUE(waiter_join(&w));
	ASSERT_EQ(1, w.ret);
	EXPECT_EQ(6, w.evs[0].events);
	want_nothing();
}

TEST_F(user, of_a_child_comes_to_the_parent)
{
	pid_t pid;

	ASSERT_EQ(1, kq_add_user(&self->q, IDENT, COUNT, 0, UDATA));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(kq_trigger(&self->q, IDENT, 6, 0) != 1);
	want(6);
	EXPECT_EQ(0, reap(pid));

	/* And the other way */
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		struct ukevent ev;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(kq_next(&self->q, self->by, &ev) != 1 || ev.events != 7);
	}
	ASSERT_EQ(1, kq_trigger(&self->q, IDENT, 7, 0));
	EXPECT_EQ(0, reap(pid));
	want_nothing();
}

/*
 * The same changes over and over, so many that the call would go on for a while
 */
TEST_F(user, changes_end_with_the_process_that_is_killed)
{
	const size_t once = 1 << 20, all = 1 << 30;
	const unsigned int nr = all / sizeof(struct ukevent);
	struct ukevent *changes, ev;
	__u64 total = 0;
	pid_t pid;
	int fd;

	fd = memfd_create("changes", 0);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, once));
	changes = mmap(NULL, all, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, changes);
	for (size_t at = 0; at < all; at += once)
		ASSERT_NE(MAP_FAILED,
			  mmap((char *)changes + at, once,
			       PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			       fd, 0));
	for (size_t i = 0; i < once / sizeof(*changes); i++)
		changes[i] = kq_trigger_change(IDENT, 1, 0);

	ASSERT_EQ(1, kq_add_user(&self->q, IDENT, COUNT, 0, UDATA));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		sys_kevent_ctl(self->q.fd, changes, nr, 0);
		_exit(0);
	}
	ASSERT_EQ(1, kq_next(&self->q, self->by, &ev));
	total += ev.events;
	ASSERT_EQ(0, kill(pid, SIGKILL));
	reap(pid);
	while (kq_collect(&self->q, self->by, &ev, 1) == 1)
		total += ev.events;
	EXPECT_LT(total, nr);
	munmap(changes, all);
	close(fd);
}

/* It has nothing but the descriptor: the queue came later than the process. */
static int use_received(int sock, const struct kevent_params *params)
{
	struct kq q = { .params = *params };
	struct ukevent ev;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	q.fd = receive_fd(sock);
	if (q.fd < 0)
		return 1;
	if (kq_trigger(&q, IDENT, 5, 0) != 1)
		return 2;
	/* It can register, and claim from the ring, like anybody. */
	if (kq_add_user(&q, 1, COUNT, 0, 2) != 1)
		return 3;
	if (kq_map(&q))
		return 4;
	if (!sync_wait(sock))
		return 5;
	if (kq_next(&q, BY_RING, &ev) != 1 || ev.ident != IDENT ||
	    ev.events != 8 || ev.user_data != UDATA)
		return 6;
	return 0;
}

TEST_F(user, of_a_process_that_was_sent_the_queue)
{
	struct kevent_params params = self->q.params;
	struct kq q;
	pid_t pid;
	int s[2];

	ASSERT_EQ(0, sync_open(s));
	kq_close(&self->q);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(s[0]);
		_exit(use_received(s[1], &params));
	}
	close(s[1]);
	ASSERT_EQ(0, kq_open(&q, SLOTS));
	self->q = q;
	ASSERT_EQ(1, kq_add_user(&q, IDENT, COUNT, 0, UDATA));
	ASSERT_EQ(0, send_fd(s[0], q.fd));
	want(5);
	ASSERT_EQ(1, kq_trigger(&q, IDENT, 8, 0));
	sync_post(s[0]);
	EXPECT_EQ(0, reap(pid));
	want_nothing();

	/* What it has registered is the queue's. */
	ASSERT_EQ(1, kq_trigger(&q, 1, 3, 0));
	want_value(&self->q, self->by, KEVENT_SOURCE_USER, 1, 3, 2);
	close(s[0]);
}

/*
 * Under fire: what is claimed is what was triggered.
 */

#define TRIGGERS	9000	/* of all who trigger together */
#define IDENTS		3
#define MAX_THREADS	3
#define BATCH		4

/* Shared memory, because those who trigger and claim can be processes */
struct fire {
	__aligned_u64 triggered[IDENTS];
	__aligned_u64 claimed[IDENTS];
	struct kq q;
	__u64 seed;
	int triggerers;
	int triggering;		/* those that are not done yet */
	int wrong;
	int claims;
};

struct fire_task {
	struct fire *f;
	int number;
	enum collect_by by;
	pthread_t thread;
	pid_t pid;
};

FIXTURE(fire) {
	struct fire *f;
};

FIXTURE_VARIANT(fire) {
	int triggerers;
	int by_ring;
	int by_call;
	bool processes;
	__u32 init_flags;
	unsigned int slots;
};

FIXTURE_VARIANT_ADD(fire, one_claims_from_the_ring) {
	.triggerers = 2, .by_ring = 1, .slots = SLOTS,
};

FIXTURE_VARIANT_ADD(fire, three_claim_from_the_ring) {
	.triggerers = 3, .by_ring = 3, .slots = SLOTS,
};

FIXTURE_VARIANT_ADD(fire, by_ring_and_by_call) {
	.triggerers = 2, .by_ring = 1, .by_call = 1, .slots = SLOTS,
};

FIXTURE_VARIANT_ADD(fire, two_by_call) {
	.triggerers = 2, .by_call = 2, .slots = SLOTS,
};

FIXTURE_VARIANT_ADD(fire, between_processes) {
	.triggerers = 2, .by_ring = 1, .by_call = 1, .processes = true,
	.slots = SLOTS,
};

FIXTURE_VARIANT_ADD(fire, with_a_ring_that_is_too_small) {
	.triggerers = 2, .by_ring = 1, .by_call = 1,
	.init_flags = KEVENT_INIT_OVERCOMMIT, .slots = 1,
};

FIXTURE_SETUP(fire)
{
	struct fire *f;

	f = mmap(NULL, sizeof(*f), PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, f);
	self->f = f;
	if (!kq_setup_flags(_metadata, &f->q, variant->slots,
			    variant->init_flags))
		return;
	f->seed = random_seed();
	f->triggerers = variant->triggerers;
	f->triggering = variant->triggerers;
}

FIXTURE_TEARDOWN(fire)
{
	kq_close(&self->f->q);
}

static void fire_wrong(struct fire *f)
{
	__atomic_fetch_add(&f->wrong, 1, __ATOMIC_RELAXED);
}

static void trigger_counts(struct fire_task *t)
{
	struct fire *f = t->f;
	__u64 random = f->seed + t->number;

	for (int i = t->number; i < TRIGGERS; i += f->triggerers) {
		__u64 ident = next_random(&random) % IDENTS;
		__u64 n = 1 + next_random(&random) % 1000;

		if (kq_trigger(&f->q, ident, n, 0) == 1)
			__atomic_fetch_add(&f->triggered[ident], n,
					   __ATOMIC_RELAXED);
		else
			fire_wrong(f);
	}
	__atomic_fetch_sub(&f->triggering, 1, __ATOMIC_RELEASE);
}

static void *trigger_counts_thread(void *arg)
{
	trigger_counts(arg);
	return NULL;
}

static void claim_counts(struct fire_task *t)
{
	struct fire *f = t->f;
	struct kq q = f->q;	/* with a cursor of its own */
	bool over;
	int nr;

	do {
		struct ukevent evs[BATCH];

		over = !__atomic_load_n(&f->triggering, __ATOMIC_ACQUIRE);
		nr = kq_collect(&q, t->by, evs, BATCH);
		if (!nr && !over) {
			/* Asleep or not, it must not stay so for long. */
			if (kq_getevents(&q, NULL, 1, 0, 20) < 0)
				fire_wrong(f);
			continue;
		}
		if (nr < 0) {
			fire_wrong(f);
			return;
		}
		for (int i = 0; i < nr; i++) {
			if (evs[i].ident >= IDENTS || !evs[i].events ||
			    evs[i].events > KEVENT_COUNT_MAX ||
			    evs[i].source != KEVENT_SOURCE_USER ||
			    evs[i].user_data != evs[i].ident + 100) {
				fire_wrong(f);
				continue;
			}
			__atomic_fetch_add(&f->claimed[evs[i].ident],
					   evs[i].events, __ATOMIC_RELAXED);
		}
		__atomic_fetch_add(&f->claims, nr, __ATOMIC_RELAXED);
	} while (nr || !over);
}

static void *claim_counts_thread(void *arg)
{
	claim_counts(arg);
	return NULL;
}

static int start_task(struct fire_task *t, bool process, void *(*fn)(void *))
{
	if (!process)
		return -pthread_create(&t->thread, NULL, fn, t);
	t->pid = fork();
	if (!t->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fn(t);
		_exit(0);
	}
	return t->pid < 0 ? -errno : 0;
}

static int join_task(struct fire_task *t, bool process)
{
	return process ? reap(t->pid) : pthread_join(t->thread, NULL);
}

/* Claims what is left, and gives the sum of the events of each. */
static void claim_rest(struct fire *f)
{
	struct kq q = f->q;
	struct ukevent ev;

	while (kq_collect(&q, BY_RING, &ev, 1) ||
	       kq_getevents(&q, &ev, 0, 1, 0) > 0) {
		if (ev.ident < IDENTS)
			f->claimed[ev.ident] += ev.events;
		else
			f->wrong++;
	}
}

TEST_F_TIMEOUT(fire, sum_of_what_is_claimed_is_what_was_triggered, 60)
{
	struct fire_task trig[MAX_THREADS] = { }, claim[MAX_THREADS] = { };
	int claimers = variant->by_ring + variant->by_call;
	bool processes = variant->processes;
	struct fire *f = self->f;

	for (__u64 i = 0; i < IDENTS; i++)
		ASSERT_EQ(1, kq_add_user(&f->q, i, COUNT, 0, i + 100));
	for (int i = 0; i < claimers; i++) {
		claim[i].f = f;
		claim[i].by = i < variant->by_ring ? BY_RING : BY_SYSCALL;
		ASSERT_EQ(0, start_task(&claim[i], processes,
					claim_counts_thread));
	}
	for (int i = 0; i < variant->triggerers; i++) {
		trig[i].f = f;
		trig[i].number = i;
		ASSERT_EQ(0, start_task(&trig[i], processes,
					trigger_counts_thread));
	}
	for (int i = 0; i < variant->triggerers; i++)
		EXPECT_EQ(0, join_task(&trig[i], processes));
	for (int i = 0; i < claimers; i++)
		EXPECT_EQ(0, join_task(&claim[i], processes));

	claim_rest(f);
	for (int i = 0; i < IDENTS; i++) {
		EXPECT_EQ(f->triggered[i], f->claimed[i])
			TH_LOG("event %d", i);
	}
	EXPECT_EQ(0, f->wrong);
	EXPECT_LT(0, f->claims);
	EXPECT_EQ(0, kevent_ring_flags(&f->q.map));
}

/*
 * Threads set and clear flags, each those of its own.  Every event shows flags
 * that were set together at some moment, and the last one all of them.
 */

#define FLAG_ROUNDS 2000

/* Sets its 8 bits, one by one, sometimes without reporting that. */
static void *set_bits(void *arg)
{
	struct fire_task *t = arg;
	__u32 base = 8 * t->number;

	for (int i = 0; i < FLAG_ROUNDS; i++) {
		__u32 what = FFOR | 1U << base << i % 8;

		if (i % 3)
			what |= TRIGGER;
		if (trigger_flags(&t->f->q, 0, what) != 1)
			fire_wrong(t->f);
		if (i % 8 == 7 && i < FLAG_ROUNDS - 1 &&
		    trigger_flags(&t->f->q, 0,
				  FFAND | (ALL & ~(0xffU << base))) != 1)
			fire_wrong(t->f);
	}
	if (trigger_flags(&t->f->q, 0, TRIGGER) != 1)
		fire_wrong(t->f);
	__atomic_fetch_sub(&t->f->triggering, 1, __ATOMIC_RELEASE);
	return NULL;
}

TEST_F(user, flags_under_fire_are_neither_lost_nor_mixed_up)
{
	struct fire f = { .q = self->q, .triggering = MAX_THREADS };
	struct fire_task t[MAX_THREADS];
	__u32 last = 0;
	bool over;
	int nr;

	ASSERT_EQ(1, kq_add_user(&self->q, 0, FLAGS, 0, UDATA));
	for (int i = 0; i < MAX_THREADS; i++) {
		t[i].f = &f;
		t[i].number = i;
		ASSERT_EQ(0, pthread_create(&t[i].thread, NULL, set_bits,
					    &t[i]));
	}
	do {
		struct ukevent ev;

		over = !__atomic_load_n(&f.triggering, __ATOMIC_ACQUIRE);
		nr = kq_collect(&self->q, self->by, &ev, 1);
		ASSERT_LE(0, nr);
		if (!nr) {
			sched_yield();
			continue;
		}
		ASSERT_EQ(TRIGGER, ev.events & ~ALL);
		last = ev.events & ALL;
		for (int i = 0; i < MAX_THREADS; i++) {
			__u32 bits = last >> 8 * i & 0xff;

			/* Each sets them in this order: no gaps. */
			EXPECT_EQ(0, bits & (bits + 1))
				TH_LOG("flags %#x", last);
		}
	} while (nr || !over);
	for (int i = 0; i < MAX_THREADS; i++)
		pthread_join(t[i].thread, NULL);
	EXPECT_EQ(0, f.wrong);
	/* All were set at the end, and the last event has to say so. */
	EXPECT_EQ(ALL, last);
}

/*
 * Triggers that never end
 */

#define CALLS 2000

struct stream {
	struct kq q;
	int stop;
	__u64 triggered;
};

static void *trigger_all_the_time(void *arg)
{
	struct stream *s = arg;

	while (!__atomic_load_n(&s->stop, __ATOMIC_RELAXED))
		if (kq_trigger(&s->q, IDENT, 1, 0) == 1)
			__atomic_fetch_add(&s->triggered, 1, __ATOMIC_RELAXED);
	return NULL;
}

TEST_F_TIMEOUT(user, is_collected_however_often_it_is_triggered, 60)
{
	struct stream s = { .q = self->q };
	pthread_t threads[MAX_THREADS];
	__u64 claimed = 0;
	struct ukevent ev;

	ASSERT_EQ(1, kq_add_user(&self->q, IDENT, COUNT, 0, UDATA));
	for (int i = 0; i < MAX_THREADS; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL,
					    trigger_all_the_time, &s));
	for (int i = 0; i < CALLS; i++) {
		/* Nobody else claims it: from now on it is there. */
		ASSERT_EQ(1, kq_getevents(&self->q, NULL, 1, 0, PATIENCE_MS));
		ASSERT_EQ(1, kq_collect(&self->q, self->by, &ev, 1))
			TH_LOG("call %d", i);
		claimed += ev.events;
	}
	__atomic_store_n(&s.stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < MAX_THREADS; i++)
		pthread_join(threads[i], NULL);
	if (kq_collect(&self->q, self->by, &ev, 1) == 1)
		claimed += ev.events;
	EXPECT_EQ(s.triggered, claimed);
}

/*
 * Deleting while others trigger
 */

struct deleted {
	struct kq q;
	pthread_t thread;
	int over;
	int wrong;
	int hits;
};

static void *trigger_what_may_be_gone(void *arg)
{
	struct deleted *d = arg;

	while (!__atomic_load_n(&d->over, __ATOMIC_ACQUIRE)) {
		int ret = kq_trigger(&d->q, IDENT, 1, 0);

		if (ret == 1)
			__atomic_fetch_add(&d->hits, 1, __ATOMIC_RELAXED);
		else if (ret != -ENOENT)
			__atomic_fetch_add(&d->wrong, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

TEST_F_TIMEOUT(user, deleted_under_fire_says_nothing_any_more, 60)
{
	struct deleted d = { .q = self->q };
	pthread_t second;

	ASSERT_EQ(0, pthread_create(&d.thread, NULL, trigger_what_may_be_gone,
				    &d));
	ASSERT_EQ(0, pthread_create(&second, NULL, trigger_what_may_be_gone,
				    &d));
	/* On a busy machine the others may not get to run for long. */
	for (int i = 0; i < 1500 ||
	     (i < 150000 && !__atomic_load_n(&d.hits, __ATOMIC_RELAXED)); i++) {
		struct ukevent ev;
		__u32 mode = i % 5 ? 0 : KEVENT_ONESHOT;
		int ret;

		ASSERT_EQ(1, kq_add_user(&self->q, IDENT, COUNT, mode, i));
		if (i % 3)
			sched_yield();
		if (i % 4 == 0 && kq_collect(&self->q, self->by, &ev, 1))
			ASSERT_EQ(i, ev.user_data);
		ret = del_user(&self->q, IDENT);
		/* A one-shot may have ended by itself. */
		ASSERT_TRUE(ret == 1 || (mode && ret == -ENOENT))
			TH_LOG("returned %d", ret);
		want_nothing();
		ASSERT_EQ(-ENOENT, del_user(&self->q, IDENT));
	}
	__atomic_store_n(&d.over, 1, __ATOMIC_RELEASE);
	pthread_join(d.thread, NULL);
	pthread_join(second, NULL);
	EXPECT_EQ(0, d.wrong);
	EXPECT_LT(0, d.hits);
	want_nothing();
}

/* Another claims all the time: nothing that was taken back comes to it. */
struct claimer {
	struct kq q;
	enum collect_by by;
	pthread_t thread;
	int over;
	unsigned int silent;	/* odd while nothing may be claimed */
	__aligned_u64 oldest;	/* the least user data that may come */
	int ghosts;
	int claims;
};

static void *claim_ghosts(void *arg)
{
	struct claimer *c = arg;
	struct kq q = c->q;

	while (!__atomic_load_n(&c->over, __ATOMIC_ACQUIRE)) {
		unsigned int silent = __atomic_load_n(&c->silent,
						      __ATOMIC_SEQ_CST);
		__u64 oldest = __atomic_load_n(&c->oldest, __ATOMIC_SEQ_CST);
		struct ukevent ev;

		if (kq_collect(&q, c->by, &ev, 1) <= 0) {
			sched_yield();
			continue;
		}
		__atomic_fetch_add(&c->claims, 1, __ATOMIC_RELAXED);
		/* It was so all the time. */
		if ((silent & 1 && silent == __atomic_load_n(&c->silent,
							     __ATOMIC_SEQ_CST)) ||
		    ev.user_data < oldest)
			c->ghosts++;
	}
	return NULL;
}

/* Is there an event that was taken back, and that nobody has passed over yet? */
static bool has_cancelled(const struct kq *q)
{
	for (__u32 i = 0; i < q->map.nr_slots; i++) {
		__u64 word = kevent_slot_word(kevent_ring_slot(&q->map, i));

		if ((word & KEVENT_WORD_READY) && !KEVENT_WORD_VALUE(word))
			return true;
	}
	return false;
}

TEST_F_TIMEOUT(user, taken_back_under_fire_is_not_claimed, 60)
{
	struct deleted d = { .q = self->q };
	struct claimer c = { .q = self->q, .by = self->by, .silent = 1 };
	int taken_back = 0;

	ASSERT_EQ(0, pthread_create(&d.thread, NULL, trigger_what_may_be_gone,
				    &d));
	ASSERT_EQ(0, pthread_create(&c.thread, NULL, claim_ghosts, &c));
	/* On a busy machine the others may not get to run for long. */
	for (int i = 1; i < 1500 ||
	     (i < 150000 && (!taken_back ||
			     !__atomic_load_n(&c.claims, __ATOMIC_RELAXED)));
	     i++) {
		bool disable = i % 3 == 0;
		__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
		int ret;

		/* SET modifies what was only disabled, and adds if not. */
		__atomic_fetch_add(&c.silent, 1, __ATOMIC_SEQ_CST);
		while ((ret = set_user(&self->q, KEVENT_OP_SET, IDENT, COUNT, 0,
				       0, i)) == -ENOSPC && now_ns() < end)
			sched_yield();
		ASSERT_EQ(1, ret);
		__atomic_store_n(&c.oldest, i, __ATOMIC_SEQ_CST);
		if (i % 2)
			sched_yield();
		ASSERT_EQ(1, user_op(&self->q, disable ? KEVENT_OP_DISABLE :
							 KEVENT_OP_DEL, IDENT));
		__atomic_fetch_add(&c.silent, 1, __ATOMIC_SEQ_CST);
		taken_back += has_cancelled(&self->q);
		if (i % 4)
			sched_yield();
	}
	__atomic_store_n(&d.over, 1, __ATOMIC_RELEASE);
	__atomic_store_n(&c.over, 1, __ATOMIC_RELEASE);
	pthread_join(d.thread, NULL);
	pthread_join(c.thread, NULL);
	EXPECT_EQ(0, c.ghosts);
	EXPECT_EQ(0, d.wrong);
	/* It was about something. */
	EXPECT_LT(0, c.claims);
	EXPECT_LT(0, taken_back);
}

/*
 * KEVENT_OP_WAKE
 */

#define WAITERS 6

FIXTURE(wake) {
	struct kq q;
	bool wait_only;
};

FIXTURE_VARIANT(wake) {
	bool wait_only;
	__u32 init_flags;
};

FIXTURE_VARIANT_ADD(wake, collecting) { false, 0 };
FIXTURE_VARIANT_ADD(wake, wait_only) { true, 0 };
FIXTURE_VARIANT_ADD(wake, collecting_lifo) { false, KEVENT_INIT_LIFO };
FIXTURE_VARIANT_ADD(wake, wait_only_lifo) { true, KEVENT_INIT_LIFO };

FIXTURE_SETUP(wake)
{
	self->wait_only = variant->wait_only;
	if (!kq_setup_flags(_metadata, &self->q, SLOTS, variant->init_flags))
		return;
	for (int i = 0; i < 8; i++)
		ASSERT_EQ(1, kq_add_user(&self->q, i, COUNT, 0, i));
}

FIXTURE_TEARDOWN(wake)
{
	kq_close(&self->q);
}

/*
 * Until a task sleeps in kevent_getevents(), and nowhere else: a wake-up does
 * not concern those who come later.  False if that cannot be found out.
 */
static bool wait_until_in_call(pid_t pid, pid_t tid)
{
	__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
	char path[64], buf[256];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", pid, tid);
	while (now_ns() < end) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n;

		if (fd < 0)
			return false;
		n = read(fd, buf, sizeof(buf) - 1);
		close(fd);
		if (n < 0)
			return false;
		buf[n] = 0;
		/* "running", or the number of the call */
		if (strtol(buf, NULL, 0) == __NR_kevent_getevents)
			return true;
		sleep_ms(1);
	}
	return false;
}

/* Starts a waiter, and is sure that it waits. */
static void __start(struct __test_metadata *_metadata, int line,
		    struct waiter *w, const struct kq *q, bool wait_only,
		    unsigned int min)
{
	w->wait_only = wait_only;
	ASSERT_EQ(0, waiter_start(w, q, min, 8))
		TH_LOG("line %d", line);
	ASSERT_TRUE(wait_until_in_call(getpid(), w->tid))
		TH_LOG("line %d: the thread does not wait", line);
}

#define start(w, min) \
	__start(_metadata, __LINE__, w, &self->q, self->wait_only, min)

TEST_F(wake, ends_the_wait_of_everybody)
{
	for (int round = 0; round < 5; round++) {
		struct waiter w[WAITERS] = { };

		for (int i = 0; i < WAITERS; i++) {
			w[i].forever = i % 2;
			start(&w[i], 1);
		}
		ASSERT_EQ(1, kq_wake(&self->q));
		for (int i = 0; i < WAITERS; i++) {
			ASSERT_TRUE(waiter_join(&w[i]))
				TH_LOG("waiter %d in round %d", i, round);
			EXPECT_EQ(0, w[i].ret)
				TH_LOG("waiter %d in round %d", i, round);
		}
	}
}

/* However many they wait for, even if there can never be so many */
TEST_F(wake, ends_the_wait_for_more_events_than_there_are)
{
	struct waiter w[WAITERS] = { };
	int collected = 0;

	for (int i = 0; i < WAITERS; i++)
		start(&w[i], i < 3 || !self->wait_only ? 3 + i : 1000 * i);
	ASSERT_EQ(1, kq_trigger(&self->q, 0, 1, 0));
	ASSERT_EQ(1, kq_trigger(&self->q, 1, 1, 0));
	sleep_ms(MOMENT_MS);
	for (int i = 0; i < WAITERS; i++) {
		EXPECT_FALSE(waiter_done(&w[i]))
			TH_LOG("waiter %d", i);
	}
	ASSERT_EQ(1, kq_wake(&self->q));
	for (int i = 0; i < WAITERS; i++) {
		ASSERT_TRUE(waiter_join(&w[i]))
			TH_LOG("waiter %d", i);
		/* They return with what there is. */
		if (self->wait_only) {
			EXPECT_EQ(2, w[i].ret)
				TH_LOG("waiter %d", i);
		} else {
			EXPECT_LE(0, w[i].ret)
				TH_LOG("waiter %d", i);
			collected += w[i].ret;
		}
	}
	/* Those who only waited have left it there. */
	for (int i = 0; self->wait_only && i < 2; i++) {
		want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, i, 1, i);
		collected++;
	}
	EXPECT_EQ(2, collected);
	want_none(&self->q, BY_RING);
}

TEST_F(wake, ends_a_wait_with_all_options)
{
	struct kevent_getopts opts = kq_opts(0);
	struct waiter w = { .opts = &opts };
	sigset_t set;

	sigfillset(&set);
	opts.min_wait = 4 * PATIENCE_MS * NSEC_PER_MSEC;
	opts.sigmask = (uintptr_t)&set;
	opts.sigsetsize = 8;
	start(&w, 3);
	ASSERT_EQ(1, kq_wake(&self->q));
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(0, w.ret);
}

TEST_F(wake, does_not_concern_those_who_come_later)
{
	struct waiter w = { };

	ASSERT_EQ(1, kq_wake(&self->q));
	ASSERT_EQ(1, kq_wake(&self->q));
	start(&w, 1);
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	ASSERT_EQ(1, kq_trigger(&self->q, 5, 1, 0));
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(1, w.ret);
}

/* It is no event: nothing can be collected, and the queue is not readable. */
TEST_F(wake, leaves_nothing_behind)
{
	struct pollfd pfd = { .fd = self->q.fd, .events = POLLIN };
	struct ukevent ev;

	ASSERT_EQ(1, kq_wake(&self->q));
	want_none(&self->q, BY_RING);
	want_none(&self->q, BY_SYSCALL);
	EXPECT_EQ(0, poll(&pfd, 1, 0));
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	EXPECT_EQ(0, kq_getevents(&self->q, &ev, 1, 1, 1));
	EXPECT_EQ(0, kq_getevents(&self->q, NULL, 1, 0, 1));
}

TEST_F(wake, refuses_what_it_does_not_know)
{
	const struct ukevent good = kq_change(KEVENT_SOURCE_QUEUE,
					      KEVENT_OP_WAKE, 0, 0);
	struct ukevent bad[9];
	struct waiter w = { };
	int nr = ARRAY_SIZE(bad);

	for (int i = 0; i < nr; i++)
		bad[i] = good;
	bad[0].ident = 1;
	bad[1].tag = 1;
	bad[2].flags = KEVENT_EDGE;
	bad[3].events = 1;
	bad[4].user_data = 1;
	bad[5].data = 1;
	bad[6].fflags = 1;
	bad[7].interval = 1;
	bad[8].source = KEVENT_SOURCE_USER;
	start(&w, 1);
	for (int i = 0; i < nr; i++) {
		EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad[i]))
			TH_LOG("number %d", i);
	}
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	ASSERT_EQ(1, kq_wake(&self->q));
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(0, w.ret);
}

/* As reap(), but not longer than a wake-up can take */
static int reap_in_time(pid_t pid)
{
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		int status;

		if (waitpid(pid, &status, WNOHANG) == pid)
			return WIFEXITED(status) ? WEXITSTATUS(status) : -EINTR;
		sleep_ms(1);
	}
	kill(pid, SIGKILL);
	reap(pid);
	return -ETIMEDOUT;
}

TEST_F(wake, reaches_other_processes_and_comes_from_them)
{
	pid_t pids[3], waker;

	for (int i = 0; i < 3; i++) {
		pids[i] = fork();
		ASSERT_LE(0, pids[i]);
		if (!pids[i]) {
			struct ukevent evs[8];
			int ret;

			prctl(PR_SET_PDEATHSIG, SIGKILL);
			ret = sys_kevent_getevents(self->q.fd,
						   self->wait_only ? NULL : evs,
						   1 + i,
						   self->wait_only ? 0 : 8,
						   NULL, NULL);
			_exit(ret != 0);
		}
	}
	for (int i = 0; i < 3; i++)
		ASSERT_TRUE(wait_until_in_call(pids[i], pids[i]));
	waker = fork();
	ASSERT_LE(0, waker);
	if (!waker)
		_exit(kq_wake(&self->q) != 1);
	EXPECT_EQ(0, reap(waker));
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(0, reap_in_time(pids[i]))
			TH_LOG("process %d", i);
	}
}

/*
 * Threads wait for events all the time, and are woken all the time: no event is
 * lost, and all of them come to an end when they are told.
 */

struct crowd {
	struct kq q;
	bool wait_only;
	pthread_t threads[WAITERS];
	__aligned_u64 sum;
	int over;
	int left;
	int wrong;
	int woken;
};

static void *wait_in_crowd(void *arg)
{
	struct crowd *c = arg;
	struct kq q = c->q;

	while (!__atomic_load_n(&c->over, __ATOMIC_ACQUIRE)) {
		struct __kernel_timespec ts = ms_to_timespec(4 * PATIENCE_MS);
		struct ukevent evs[4];
		int nr;

		nr = sys_kevent_getevents(q.fd, c->wait_only ? NULL : evs, 1,
					  c->wait_only ? 0 : 4, &ts, NULL);
		if (!nr)
			__atomic_fetch_add(&c->woken, 1, __ATOMIC_RELAXED);
		if (c->wait_only && nr >= 0)
			nr = kq_collect(&q, BY_RING, evs, 4);
		if (nr < 0)
			__atomic_fetch_add(&c->wrong, 1, __ATOMIC_RELAXED);
		for (int i = 0; i < nr; i++)
			__atomic_fetch_add(&c->sum, evs[i].events,
					   __ATOMIC_RELAXED);
	}
	__atomic_fetch_sub(&c->left, 1, __ATOMIC_RELEASE);
	return NULL;
}

TEST_F_TIMEOUT(wake, under_fire_loses_no_event_and_no_thread, 60)
{
	struct crowd c = {
		.q = self->q, .wait_only = self->wait_only, .left = WAITERS,
	};
	__s64 end;
	__u64 sum = 0;
	struct ukevent ev;

	for (int i = 0; i < WAITERS; i++)
		ASSERT_EQ(0, pthread_create(&c.threads[i], NULL, wait_in_crowd,
					    &c));
	for (int i = 1; i <= 1000; i++) {
		if (i % 3)
			ASSERT_EQ(1, kq_wake(&self->q));
		if (i % 4) {
			ASSERT_EQ(1, kq_trigger(&self->q, i % 8, i, 0));
			sum += i;
		}
		if (i % 16 == 0)
			sched_yield();
	}
	/* Who has looked at it before it was set may still be on the way. */
	__atomic_store_n(&c.over, 1, __ATOMIC_RELEASE);
	end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
	while (__atomic_load_n(&c.left, __ATOMIC_ACQUIRE) && now_ns() < end) {
		ASSERT_EQ(1, kq_wake(&self->q));
		sleep_ms(1);
	}
	ASSERT_EQ(0, c.left);
	for (int i = 0; i < WAITERS; i++)
		pthread_join(c.threads[i], NULL);
	/* What was passed over by somebody is behind the ring. */
	while (kq_collect(&self->q, BY_RING, &ev, 1) ||
	       kq_getevents(&self->q, &ev, 0, 1, 0) > 0)
		c.sum += ev.events;
	EXPECT_EQ(sum, c.sum);
	EXPECT_EQ(0, c.wrong);
	EXPECT_LT(0, c.woken);
	want_none(&self->q, BY_SYSCALL);
}

TEST_HARNESS_MAIN
