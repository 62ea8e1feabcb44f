// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: timers.  When they expire, how often they say they did, what changes
 * and ends them while they fire, and what setting the clock does to them.
 *
 * A timer may be late by any amount, so nothing here says that it must not be.
 * It may never be early, and it may neither lose nor invent an expiry; how that
 * can be told from the time of the claims is said at struct periodic.
 */
#include "kevent_util.h"

#include <sys/prctl.h>

#define SLOTS 16
#define UDATA 0x123456789abcdef0ULL
#define IDENT 0xfedcba9876543210ULL

#define NSEC_PER_USEC	1000LL
#define DAY		(24 * HOUR_NS)
/* Where the kernel's time ends, and what a program can ask for beyond that */
#define KTIME_MAX	0x7fffffffffffffffULL
#define NEVER		0xffffffffffffffffULL

#define ABS KEVENT_TIMER_ABS
#define CANCEL (KEVENT_TIMER_ABS | KEVENT_TIMER_CANCEL_ON_SET)

static const clockid_t clocks[] = {
	CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_TAI,
};

static int timer_op(const struct kq *q, __u16 op, __u64 ident)
{
	return kq_op(q, KEVENT_SOURCE_TIMER, op, ident, 0);
}

static int del_timer(const struct kq *q, __u64 ident)
{
	return timer_op(q, KEVENT_OP_DEL, ident);
}

static int set_timer(const struct kq *q, __u16 op, __u64 ident, __u32 fflags,
		     __u64 data, __u64 interval, __u32 mode, __u64 udata)
{
	return kq_apply(q, kq_timer_change(op, ident, fflags, data, interval,
					   mode, udata));
}

/* The next event has to be of this timer; gives its value. */
static __u32 __want_expiry(struct __test_metadata *_metadata, int line,
			   struct kq *q, enum collect_by by, __u64 ident,
			   __u32 mode, __u64 udata)
{
	struct ukevent ev;

	ASSERT_EQ(1, kq_next(q, by, &ev))
		TH_LOG("line %d: timer %llu did not expire", line, ident);
	EXPECT_EQ(KEVENT_SOURCE_TIMER, ev.source)
		TH_LOG("line %d", line);
	EXPECT_EQ(ident, ev.ident)
		TH_LOG("line %d", line);
	EXPECT_EQ(udata, ev.user_data)
		TH_LOG("line %d", line);
	EXPECT_EQ(by == BY_RING ? 0 : KEVENT_EDGE | mode, ev.flags)
		TH_LOG("line %d", line);
	EXPECT_NE(0, ev.events)
		TH_LOG("line %d", line);
	return ev.events;
}

#define want_expiry(q, by, ident, udata) \
	__want_expiry(_metadata, __LINE__, q, by, ident, 0, udata)
#define want_expiry_mode(q, by, ident, mode, udata) \
	__want_expiry(_metadata, __LINE__, q, by, ident, mode, udata)

/* Nothing comes, even if there is time for it. */
#define want_silent(q, by) do {	\
	sleep_ms(SETTLE_MS);	\
	want_none(q, by);	\
} while (0)

/*
 * Counting
 */

/**
 * struct periodic - a timer whose expiries are counted
 * @clock: what it is measured by: its own, or the monotonic one if it is
 *	relative
 * @earliest: the first expiry is not before that
 * @latest: nor is it due after that
 * @interval: the time between two
 * @total: what the events that were claimed add up to
 * @begun: when the last two claims were begun, the last one first
 * @claims: how many events were claimed
 *
 * No claim can have more than is due when it has ended.  That is one bound.
 *
 * For the other: an event is posted after the claim of the one before it.  Its
 * expiry can have been counted up to a moment before that claim, but the expiry
 * behind the next event but one cannot: callbacks of a timer do not overlap.
 * So after each claim, the total has at least what was due when the last claim
 * but one was begun, however late the timer is.
 */
struct periodic {
	clockid_t clock;
	__s64 earliest;
	__s64 latest;
	__s64 interval;
	__aligned_u64 total;
	__s64 begun[2];
	unsigned int claims;
};

/* How often a timer is due up to @now that is due at @first at first */
static __u64 due(__s64 first, __s64 interval, __s64 now)
{
	return now < first ? 0 : (__u64)(now - first) / interval + 1;
}

/* Clocks without high resolution do not count what is too fast for them. */
static __s64 resolvable(__s64 interval)
{
	struct timespec res;
	__s64 ns;

	if (clock_getres(CLOCK_MONOTONIC, &res))
		return interval;
	ns = res.tv_sec * NSEC_PER_SEC + res.tv_nsec;
	return interval < ns ? ns : interval;
}

static __u64 due_at_most(const struct periodic *p, __s64 now)
{
	return due(p->earliest, p->interval, now);
}

/* Of what is shorter, several are counted together. */
#define SHORTEST_NS (100 * NSEC_PER_USEC)

static __u64 due_at_least(const struct periodic *p, __s64 now)
{
	if (p->interval < SHORTEST_NS)
		now -= SHORTEST_NS;
	return due(p->latest, resolvable(p->interval), now);
}

/* Starts a timer by @op; @delay is from now, and may be negative if @abs. */
static int start_periodic(const struct kq *q, struct periodic *p, __u16 op,
			  clockid_t clock, bool abs, __s64 delay,
			  __s64 interval, __u32 mode)
{
	__s64 data = delay;
	int ret;

	memset(p, 0, sizeof(*p));
	p->clock = abs ? clock : CLOCK_MONOTONIC;
	p->interval = interval;
	p->earliest = clock_ns(p->clock) + delay;
	if (abs)
		data = p->earliest;
	ret = set_timer(q, op, IDENT, clock | (abs ? ABS : 0), data, interval,
			mode, UDATA);
	p->latest = abs ? p->earliest : clock_ns(p->clock) + delay;
	return ret;
}

/* Claims the next event, and says whether what was counted can be right. */
static void __want_counted(struct __test_metadata *_metadata, int line,
			   struct kq *q, enum collect_by by, struct periodic *p,
			   __u32 mode)
{
	__s64 begun = clock_ns(p->clock);
	__u32 value;

	value = __want_expiry(_metadata, line, q, by, IDENT, mode, UDATA);
	EXPECT_GE(KEVENT_COUNT_MAX, value)
		TH_LOG("line %d: value %#x", line, value);
	p->total += value;
	EXPECT_LE(p->total, due_at_most(p, clock_ns(p->clock)))
		TH_LOG("line %d: claim %u: early, or counted twice", line,
		       p->claims);
	if (p->claims++ >= 2) {
		EXPECT_GE(p->total, due_at_least(p, p->begun[1]))
			TH_LOG("line %d: claim %u: not all was counted", line,
			       p->claims - 1);
	}
	p->begun[1] = p->begun[0];
	p->begun[0] = begun;
}

#define want_counted(q, by, p) \
	__want_counted(_metadata, __LINE__, q, by, p, 0)
#define want_counted_mode(q, by, p, mode) \
	__want_counted(_metadata, __LINE__, q, by, p, mode)

/*
 * What every clock has to do, however the events are collected
 */

FIXTURE(clock) {
	struct kq q;
	clockid_t clock;
	enum collect_by by;
};

FIXTURE_VARIANT(clock) {
	clockid_t clock;
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(clock, monotonic_ring) { CLOCK_MONOTONIC, BY_RING };
FIXTURE_VARIANT_ADD(clock, monotonic_call) { CLOCK_MONOTONIC, BY_SYSCALL };
FIXTURE_VARIANT_ADD(clock, realtime_ring) { CLOCK_REALTIME, BY_RING };
FIXTURE_VARIANT_ADD(clock, realtime_call) { CLOCK_REALTIME, BY_SYSCALL };
FIXTURE_VARIANT_ADD(clock, boottime_ring) { CLOCK_BOOTTIME, BY_RING };
FIXTURE_VARIANT_ADD(clock, boottime_call) { CLOCK_BOOTTIME, BY_SYSCALL };
FIXTURE_VARIANT_ADD(clock, tai_ring) { CLOCK_TAI, BY_RING };
FIXTURE_VARIANT_ADD(clock, tai_call) { CLOCK_TAI, BY_SYSCALL };

FIXTURE_SETUP(clock)
{
	self->clock = variant->clock;
	self->by = variant->by;
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(clock)
{
	kq_close(&self->q);
}

TEST_F(clock, relative_expires_once_and_not_early)
{
	for (int ms = 0; ms <= 20; ms += 10) {
		__s64 delay = ms * NSEC_PER_MSEC, start = now_ns();

		ASSERT_EQ(1, kq_add_timer(&self->q, ms, self->clock, delay, 0,
					  UDATA));
		EXPECT_EQ(1, want_expiry(&self->q, self->by, ms, UDATA));
		EXPECT_LE(delay, now_ns() - start);
	}
	want_silent(&self->q, self->by);
	/* They are registered all the same. */
	for (int ms = 0; ms <= 20; ms += 10)
		EXPECT_EQ(1, del_timer(&self->q, ms));
}

TEST_F(clock, absolute_expires_once_and_not_early)
{
	for (int ms = 1; ms <= 21; ms += 10) {
		__s64 end = clock_ns(self->clock) + ms * NSEC_PER_MSEC;

		ASSERT_EQ(1, kq_add_timer(&self->q, ms, self->clock | ABS, end,
					  0, UDATA));
		EXPECT_EQ(1, want_expiry(&self->q, self->by, ms, UDATA));
		EXPECT_LE(end, clock_ns(self->clock));
	}
	want_silent(&self->q, self->by);
	for (int ms = 1; ms <= 21; ms += 10)
		EXPECT_EQ(1, del_timer(&self->q, ms));
}

/* Two clocks are ahead, for those who were born into the namespace. */
TEST_F(clock, absolute_is_of_the_time_namespace)
{
	pid_t pid;

	if (unshare(CLONE_NEWTIME))
		SKIP(return, "cannot make a time namespace");
	ASSERT_TRUE(shift_time_namespace());
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		__s64 end = clock_ns(variant->clock) + 5 * NSEC_PER_MSEC;
		struct ukevent ev;

		if (kq_add_timer(&self->q, 1, variant->clock | KEVENT_TIMER_ABS,
				 end, 0, 1) != 1)
			_exit(1);
		if (kq_next(&self->q, variant->by, &ev) != 1)
			_exit(2);
		_exit(clock_ns(variant->clock) < end ? 3 : 0);
	}
	EXPECT_EQ(0, reap(pid));
}

TEST_F(clock, absolute_in_the_past_expires_at_once)
{
	const __u64 times[] = {
		0, 1, clock_ns(self->clock) - 1, clock_ns(self->clock),
	};

	for (size_t i = 0; i < ARRAY_SIZE(times); i++) {
		ASSERT_EQ(1, kq_add_timer(&self->q, i, self->clock | ABS,
					  times[i], 0, UDATA));
		EXPECT_EQ(1, want_expiry(&self->q, self->by, i, UDATA));
	}
	want_silent(&self->q, self->by);
}

/* With time for several expiries between two claims, and without */
TEST_F(clock, periodic_counts_every_expiry)
{
	for (int abs = 0; abs < 2; abs++) {
		struct periodic p;

		ASSERT_EQ(1, start_periodic(&self->q, &p, KEVENT_OP_SET,
					    self->clock, abs,
					    3 * NSEC_PER_MSEC,
					    2 * NSEC_PER_MSEC, 0));
		for (int i = 0; i < 12; i++) {
			if (i % 3)
				sleep_ms(7);
			want_counted(&self->q, self->by, &p);
		}
	}
	EXPECT_EQ(1, del_timer(&self->q, IDENT));
	want_silent(&self->q, self->by);
}

/* The first event has all of it, exactly: the timer was looked at just once. */
TEST_F(clock, absolute_in_the_past_counts_what_was_missed)
{
	for (int i = 0; i < 10; i++) {
		struct periodic p;

		ASSERT_EQ(1, start_periodic(&self->q, &p, KEVENT_OP_SET,
					    self->clock, true,
					    -(100 + i) * NSEC_PER_MSEC,
					    20 * NSEC_PER_MSEC, 0));
		want_counted(&self->q, self->by, &p);
		EXPECT_LE(6, p.total);
	}
}

TEST_F(clock, claims_lose_no_expiry_under_fire)
{
	struct periodic p;

	ASSERT_EQ(1, start_periodic(&self->q, &p, KEVENT_OP_ADD, self->clock,
				    false, 0, 50 * NSEC_PER_USEC, 0));
	for (int i = 0; i < 150; i++)
		want_counted(&self->q, self->by, &p);
}

TEST_F(clock, wakes_who_waits)
{
	struct waiter w = { };
	struct pollfd pfd = { .fd = self->q.fd, .events = POLLIN };

	ASSERT_EQ(0, waiter_start(&w, &self->q, 3, 8));
	for (int i = 0; i < 3; i++) {
		EXPECT_FALSE(waiter_done(&w));
		ASSERT_EQ(1, kq_add_timer(&self->q, i, self->clock, 1000 * i, 0,
					  UDATA));
	}
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(3, w.ret);

	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, self->clock,
				  5 * NSEC_PER_MSEC, 0, UDATA));
	EXPECT_EQ(1, poll(&pfd, 1, PATIENCE_MS));
	EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, UDATA));
}

/*
 * Extreme times
 */

struct extreme {
	__u32 fflags;
	__u64 data;
	__u64 interval;
	bool expires;
};

static const struct extreme extremes[] = {
	{ 0, 0, 0, true },
	{ 0, 1, 0, true },
	{ 0, 0, NEVER, true },
	{ 0, 1, KTIME_MAX, true },
	{ 0, 0, KTIME_MAX - 1, true },
	{ 0, 1, 1ULL << 62, true },
	{ 0, 1, 1ULL << 63, true },
	{ 0, KTIME_MAX, 0, false },
	{ 0, KTIME_MAX - 1, 0, false },
	{ 0, 1ULL << 63, 0, false },
	{ 0, 1ULL << 62, 0, false },
	{ 0, NEVER, 0, false },
	{ 0, NEVER, NEVER, false },
	{ 0, NEVER, 1, false },
	{ 0, KTIME_MAX, 1, false },
	{ ABS, 0, 0, true },
	{ ABS, 1, 0, true },
	{ ABS, 0, NEVER, true },
	{ ABS, 1, KTIME_MAX, true },
	{ ABS, 0, KTIME_MAX - 1, true },
	{ ABS, 0, 1ULL << 62, true },
	{ ABS, KTIME_MAX, 0, false },
	{ ABS, KTIME_MAX - 1, 0, false },
	{ ABS, 1ULL << 63, 0, false },
	{ ABS, 1ULL << 62, 0, false },
	{ ABS, NEVER, 0, false },
	{ ABS, NEVER, NEVER, false },
	{ ABS, NEVER, 1, false },
	{ ABS, KTIME_MAX, 1, false },
};

#define EXTREMES ARRAY_SIZE(extremes)

/* Those that are to expire do, once and no more; gives how many. */
static unsigned int want_extremes(struct __test_metadata *_metadata,
				  struct kq *q, enum collect_by by,
				  bool backwards)
{
	unsigned int left = 0, nr;
	bool seen[EXTREMES] = { };
	struct ukevent ev;

	for (size_t i = 0; i < EXTREMES; i++)
		left += extremes[i].expires;
	for (nr = left; left && kq_next(q, by, &ev); left--) {
		size_t i = ev.ident;

		ASSERT_GT(EXTREMES, i);
		if (backwards)
			i = EXTREMES - 1 - i;
		EXPECT_TRUE(extremes[i].expires)
			TH_LOG("number %zu expired", i);
		EXPECT_FALSE(seen[i])
			TH_LOG("number %zu came twice", i);
		EXPECT_EQ(1, ev.events)
			TH_LOG("number %zu", i);
		seen[i] = true;
	}
	EXPECT_EQ(0, left);
	want_silent(q, by);
	return nr;
}

/* Each of them, and each after another by modification */
TEST_F(clock, extreme_times_are_never_or_at_once)
{
	struct kq q;

	ASSERT_EQ(0, kq_open(&q, EXTREMES));
	for (size_t i = 0; i < EXTREMES; i++) {
		const struct extreme *e = &extremes[i];

		EXPECT_EQ(1, kq_add_timer(&q, i, self->clock | e->fflags,
					  e->data, e->interval, UDATA))
			TH_LOG("number %zu", i);
	}
	EXPECT_LT(0, want_extremes(_metadata, &q, self->by, false));
	for (size_t i = 0; i < EXTREMES; i++) {
		const struct extreme *e = &extremes[EXTREMES - 1 - i];

		EXPECT_EQ(1, kq_mod_timer(&q, i, self->clock | e->fflags,
					  e->data, e->interval, UDATA))
			TH_LOG("number %zu", i);
	}
	EXPECT_LT(0, want_extremes(_metadata, &q, self->by, true));
	for (size_t i = 0; i < EXTREMES; i++)
		EXPECT_EQ(1, del_timer(&q, i));
	kq_close(&q);
}

/* As fast as can be: the machine goes on, and it can be ended. */
TEST_F(clock, of_one_nanosecond_can_be_ended)
{
	for (int abs = 0; abs < 2; abs++) {
		__s64 begun = clock_ns(self->clock);
		__u32 value;

		/* Whatever it has missed since its clock was zero */
		ASSERT_EQ(1, kq_add_timer(&self->q, abs,
					  self->clock | (abs ? ABS : 0),
					  abs ? 0 : 1, 1, UDATA));
		value = want_expiry(&self->q, self->by, abs, UDATA);
		EXPECT_GE(KEVENT_COUNT_MAX, value);
		if (!abs) {
			__u64 now = clock_ns(self->clock);

			EXPECT_LE(value, now - begun);
		} else if (resolvable(1) == 1) {
			EXPECT_LE(begun < KEVENT_COUNT_MAX ? begun :
							     KEVENT_COUNT_MAX,
				  value);
		}
		for (int i = 0; i < 10; i++)
			want_expiry(&self->q, self->by, abs, UDATA);
		ASSERT_EQ(1, del_timer(&self->q, abs));
		want_none(&self->q, self->by);
	}
	want_silent(&self->q, self->by);
}

/* However fast it is claimed */
TEST_F(clock, of_one_nanosecond_is_reported_ten_times_a_millisecond_at_most)
{
	__s64 begun = now_ns();

	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, self->clock, 0, 1, UDATA));
	for (int i = 0; i < 100; i++) {
		want_expiry(&self->q, self->by, IDENT, UDATA);
		EXPECT_LE(i * SHORTEST_NS, now_ns() - begun);
	}
}

TEST_F(clock, of_one_nanosecond_can_be_slowed_down)
{
	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, self->clock, 1, 1, UDATA));
	want_expiry(&self->q, self->by, IDENT, UDATA);
	ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT, self->clock, HOUR_NS, 1,
				  UDATA + 1));
	want_silent(&self->q, self->by);
	ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT, self->clock, 1, HOUR_NS,
				  UDATA + 2));
	EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, UDATA + 2));
	want_silent(&self->q, self->by);
}

/*
 * What does not depend on the clock
 */

FIXTURE(timer) {
	struct kq q;
	enum collect_by by;
};

FIXTURE_VARIANT(timer) {
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(timer, ring) { BY_RING };
FIXTURE_VARIANT_ADD(timer, call) { BY_SYSCALL };

FIXTURE_SETUP(timer)
{
	self->by = variant->by;
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(timer)
{
	kq_close(&self->q);
}

TEST_F(timer, refuses_what_it_does_not_know)
{
	const struct ukevent good = kq_timer_change(KEVENT_OP_ADD, IDENT,
						    CLOCK_MONOTONIC, 0, 0, 0,
						    UDATA);
	static const __u32 bad_fflags[] = {
		CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID,
		CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE,
		CLOCK_MONOTONIC_COARSE, CLOCK_REALTIME_ALARM,
		CLOCK_BOOTTIME_ALARM, 10, 12, 0xff,
		CLOCK_MONOTONIC | 1U << 10, CLOCK_MONOTONIC | 1U << 31,
		/* Only of the clock that is set, and only at a time of it */
		CLOCK_REALTIME | KEVENT_TIMER_CANCEL_ON_SET,
		CLOCK_MONOTONIC | CANCEL, CLOCK_BOOTTIME | CANCEL,
		CLOCK_TAI | CANCEL, CLOCK_MONOTONIC | KEVENT_TIMER_CANCEL_ON_SET,
	};
	static const __u32 bad_flags[] = {
		0, KEVENT_LEVEL, KEVENT_EDGE | KEVENT_LEVEL, KEVENT_ONESHOT,
		KEVENT_EDGE | KEVENT_ONESHOT | KEVENT_DISPATCH,
		KEVENT_EDGE | KEVENT_EXCLUSIVE, KEVENT_EDGE | KEVENT_ROUND_ROBIN,
		KEVENT_EDGE | KEVENT_EXCLUSIVE | KEVENT_ROUND_ROBIN,
		KEVENT_EDGE | KEVENT_ALWAYS_READY, KEVENT_EDGE | 1U << 31,
	};
	struct ukevent bad;

	for (size_t i = 0; i < ARRAY_SIZE(bad_fflags); i++) {
		bad = good;
		bad.fflags = bad_fflags[i];
		EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad))
			TH_LOG("fflags %#x", bad.fflags);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad_flags); i++) {
		bad = good;
		bad.flags = bad_flags[i];
		EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad))
			TH_LOG("flags %#x", bad.flags);
	}
	bad = good;
	bad.events = 1;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));
	bad = good;
	bad.op = KEVENT_OP_TRIGGER;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad));
	EXPECT_EQ(-ENOENT, del_timer(&self->q, IDENT));
	want_silent(&self->q, self->by);
}

TEST_F(timer, that_is_refused_a_change_goes_on_as_before)
{
	struct periodic p;

	ASSERT_EQ(1, start_periodic(&self->q, &p, KEVENT_OP_ADD,
				    CLOCK_MONOTONIC, false, 0, NSEC_PER_MSEC,
				    0));
	want_counted(&self->q, self->by, &p);
	EXPECT_EQ(-EEXIST, kq_add_timer(&self->q, IDENT, CLOCK_MONOTONIC, HOUR_NS,
					0, 1));
	want_counted(&self->q, self->by, &p);
	EXPECT_EQ(-EINVAL, kq_mod_timer(&self->q, IDENT, 0xff, HOUR_NS, 0, 1));
	want_counted(&self->q, self->by, &p);
	EXPECT_EQ(-ENOENT, kq_mod_timer(&self->q, 1, CLOCK_MONOTONIC, HOUR_NS, 0,
					1));
	want_counted(&self->q, self->by, &p);
}

TEST_F(timer, is_named_by_its_tag_too)
{
	struct ukevent ev;

	for (__u32 tag = 0; tag < 3; tag++) {
		struct ukevent change;

		change = kq_timer_change(KEVENT_OP_ADD, IDENT, CLOCK_MONOTONIC,
					 HOUR_NS, 0, 0, tag);
		change.tag = ~tag;
		ASSERT_EQ(1, kq_apply(&self->q, change));
		EXPECT_EQ(-EEXIST, kq_apply(&self->q, change));
	}
	EXPECT_EQ(-ENOENT, del_timer(&self->q, IDENT));
	/* What is of another source is another. */
	ASSERT_EQ(1, kq_add_user(&self->q, IDENT, KEVENT_USER_COUNT, 0, 9));

	for (__u32 tag = 0; tag < 3; tag++) {
		struct ukevent change;

		change = kq_timer_change(KEVENT_OP_MOD, IDENT, CLOCK_MONOTONIC,
					 0, 0, 0, tag + 10);
		change.tag = ~tag;
		ASSERT_EQ(1, kq_apply(&self->q, change));
		ASSERT_EQ(1, kq_next(&self->q, self->by, &ev));
		EXPECT_EQ(KEVENT_SOURCE_TIMER, ev.source);
		EXPECT_EQ(IDENT, ev.ident);
		EXPECT_EQ(~tag, ev.tag);
		EXPECT_EQ(tag + 10, ev.user_data);
		EXPECT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_TIMER, KEVENT_OP_DEL,
				   IDENT, ~tag));
		EXPECT_EQ(-ENOENT, kq_op(&self->q, KEVENT_SOURCE_TIMER,
					 KEVENT_OP_DEL, IDENT, ~tag));
	}
	want_silent(&self->q, self->by);
}

/*
 * Counts that come to an end
 */

/* In the unclaimed event, and in what a disabled timer holds */
TEST_F(timer, counts_saturate)
{
	static const clockid_t of[] = { CLOCK_REALTIME, CLOCK_TAI };
	const __s64 interval = NSEC_PER_MSEC;

	if (resolvable(interval) != interval ||
	    clock_ns(CLOCK_REALTIME) / interval < 2LL * KEVENT_COUNT_MAX)
		SKIP(return, "the clock has not shown enough time");

	for (size_t i = 0; i < ARRAY_SIZE(of); i++) {
		__s64 begun;

		begun = now_ns();
		ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, of[i] | ABS, 0,
					  interval, UDATA));
		/* It expires again and again; the count stays. */
		sleep_ms(SETTLE_MS);
		EXPECT_EQ(KEVENT_COUNT_MAX,
			  want_expiry(&self->q, self->by, IDENT, UDATA));
		/* And then it begins anew. */
		EXPECT_LE(want_expiry(&self->q, self->by, IDENT, UDATA),
			  (now_ns() - begun) / interval + 1);

		begun = now_ns();
		ASSERT_EQ(1, set_timer(&self->q, KEVENT_OP_MOD, IDENT,
				       of[i] | ABS, 0, interval,
				       KEVENT_DISABLED, UDATA));
		sleep_ms(SETTLE_MS);
		want_none(&self->q, self->by);
		ASSERT_EQ(1, timer_op(&self->q, KEVENT_OP_ENABLE, IDENT));
		EXPECT_EQ(KEVENT_COUNT_MAX,
			  want_expiry(&self->q, self->by, IDENT, UDATA));
		EXPECT_LE(want_expiry(&self->q, self->by, IDENT, UDATA),
			  (now_ns() - begun) / interval + 1);
		EXPECT_EQ(1, del_timer(&self->q, IDENT));
	}
}

/*
 * Changes
 */

TEST_F(timer, that_expired_is_started_again_by_mod_and_set)
{
	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, CLOCK_MONOTONIC, 0, 0, 0));
	EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, 0));
	for (int i = 1; i < 20; i++) {
		__u16 op = i % 3 ? KEVENT_OP_MOD : KEVENT_OP_SET;
		clockid_t clock = clocks[i % ARRAY_SIZE(clocks)];
		__s64 delay = NSEC_PER_MSEC * (i % 4), start = now_ns();

		ASSERT_EQ(1, set_timer(&self->q, op, IDENT, clock, delay, 0, 0,
				       i));
		EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, i));
		EXPECT_LE(delay, now_ns() - start);
		want_none(&self->q, self->by);
	}
	EXPECT_EQ(1, del_timer(&self->q, IDENT));
	/* And if there is none, it is added. */
	ASSERT_EQ(1, set_timer(&self->q, KEVENT_OP_SET, IDENT, CLOCK_MONOTONIC,
			       0, 0, 0, 99));
	EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, 99));
}

TEST_F(timer, that_is_modified_expires_at_the_new_time)
{
	const __s64 delay = 20 * NSEC_PER_MSEC;
	__s64 start;

	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, CLOCK_MONOTONIC, HOUR_NS, 0,
				  1));
	start = now_ns();
	ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT, CLOCK_BOOTTIME, delay, 0,
				  2));
	EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, 2));
	EXPECT_LE(delay, now_ns() - start);

	/* Later than it was to be */
	ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT, CLOCK_MONOTONIC, delay, 0,
				  3));
	start = now_ns();
	ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT, CLOCK_MONOTONIC, 2 * delay,
				  0, 4));
	EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, 4));
	EXPECT_LE(2 * delay, now_ns() - start);
	want_silent(&self->q, self->by);
}

/* It is modified just when it expires, or before, or after. */
TEST_F(timer, that_is_modified_says_nothing_of_before)
{
	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, CLOCK_MONOTONIC, HOUR_NS, 0,
				  0));
	for (int i = 0; i < 300; i++) {
		ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT, CLOCK_MONOTONIC,
					  i * 300, i % 2 ? 1000 : 0, 1));
		ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT, CLOCK_MONOTONIC,
					  HOUR_NS, 0, 2));
		want_none(&self->q, self->by);
	}
	want_silent(&self->q, self->by);
	ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT, CLOCK_MONOTONIC, 0, 0, 3));
	EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, 3));
}

TEST_F(timer, that_is_deleted_says_nothing_any_more)
{
	for (int i = 0; i < 300; i++) {
		ASSERT_EQ(1, kq_add_timer(&self->q, IDENT,
					  clocks[i % ARRAY_SIZE(clocks)],
					  i * 300, i % 2 ? 1000 : 0, UDATA));
		ASSERT_EQ(1, del_timer(&self->q, IDENT));
		want_none(&self->q, self->by);
		EXPECT_EQ(-ENOENT, del_timer(&self->q, IDENT));
	}
	want_silent(&self->q, self->by);
}

TEST_F(timer, that_is_disabled_goes_on_counting)
{
	struct periodic p;

	ASSERT_EQ(1, start_periodic(&self->q, &p, KEVENT_OP_ADD,
				    CLOCK_MONOTONIC, false, 0, NSEC_PER_MSEC,
				    0));
	for (int i = 0; i < 12; i++) {
		if (i % 2)
			want_counted(&self->q, self->by, &p);
		/* With and without an unclaimed event, which it takes back */
		sleep_ms(i % 3);
		ASSERT_EQ(1, timer_op(&self->q, KEVENT_OP_DISABLE, IDENT));
		want_none(&self->q, self->by);
		sleep_ms(5);
		ASSERT_EQ(1, timer_op(&self->q, KEVENT_OP_DISABLE, IDENT));
		want_none(&self->q, self->by);
		ASSERT_EQ(1, timer_op(&self->q, KEVENT_OP_ENABLE, IDENT));
		want_counted(&self->q, self->by, &p);
	}
}

TEST_F(timer, that_expires_while_disabled_says_so_when_enabled)
{
	static const __u16 ops[] = {
		KEVENT_OP_ADD, KEVENT_OP_MOD, KEVENT_OP_SET,
	};
	const size_t nr = ARRAY_SIZE(ops);

	for (size_t i = 0; i < nr; i++) {
		/* What is modified has expired before, when it was enabled. */
		if (ops[i] != KEVENT_OP_ADD) {
			ASSERT_EQ(1, kq_add_timer(&self->q, i, CLOCK_MONOTONIC,
						  0, 0, UDATA));
			EXPECT_EQ(1, want_expiry(&self->q, self->by, i, UDATA));
		}
		ASSERT_EQ(1, set_timer(&self->q, ops[i], i, CLOCK_MONOTONIC,
				       i * NSEC_PER_MSEC, 0, KEVENT_DISABLED,
				       i));
	}
	want_silent(&self->q, self->by);
	for (size_t i = 0; i < nr; i++) {
		ASSERT_EQ(1, timer_op(&self->q, KEVENT_OP_ENABLE, i));
		EXPECT_EQ(1, want_expiry(&self->q, self->by, i, i));
	}
	/* It does not start a timer that has expired. */
	for (size_t i = 0; i < nr; i++)
		ASSERT_EQ(1, timer_op(&self->q, KEVENT_OP_ENABLE, i));
	want_silent(&self->q, self->by);
}

/*
 * Modes
 */

TEST_F(timer, one_shot_ends_with_the_claim)
{
	struct kq q;

	/* The one slot there is comes back, too. */
	ASSERT_EQ(0, kq_open(&q, 1));
	for (int i = 0; i < 6; i++) {
		ASSERT_EQ(1, set_timer(&q, KEVENT_OP_ADD, i, CLOCK_MONOTONIC, 0,
				       i % 2 ? NSEC_PER_MSEC : 0,
				       KEVENT_ONESHOT, UDATA));
		EXPECT_EQ(-ENOSPC, kq_add_timer(&q, IDENT, CLOCK_MONOTONIC, 0,
						0, UDATA));
		sleep_ms(i % 3);
		want_expiry_mode(&q, self->by, i, KEVENT_ONESHOT, UDATA);
		EXPECT_EQ(-ENOENT, kq_mod_timer(&q, i, CLOCK_MONOTONIC, 0, 0,
						UDATA));
		EXPECT_EQ(-ENOENT, del_timer(&q, i));
		want_none(&q, self->by);
	}
	/* Before the claim, it can be deleted as any other. */
	ASSERT_EQ(1, set_timer(&q, KEVENT_OP_ADD, IDENT, CLOCK_MONOTONIC, 0, 0,
			       KEVENT_ONESHOT, UDATA));
	sleep_ms(1);
	EXPECT_EQ(1, del_timer(&q, IDENT));
	want_silent(&q, self->by);
	kq_close(&q);
}

TEST_F(timer, one_shot_counts_until_the_claim)
{
	enum { NR = 5 };
	struct periodic p;
	struct kq q[NR];

	for (int i = 0; i < NR; i++) {
		__s64 begun = now_ns();

		ASSERT_EQ(0, kq_open(&q[i], 1));
		ASSERT_EQ(1, start_periodic(&q[i], &p, KEVENT_OP_ADD,
					    CLOCK_MONOTONIC, true,
					    -50 * NSEC_PER_MSEC, NSEC_PER_MSEC,
					    KEVENT_ONESHOT));
		sleep_ms(i);
		want_counted_mode(&q[i], self->by, &p, KEVENT_ONESHOT);
		EXPECT_GE(p.total, due_at_least(&p, begun));
	}
	sleep_ms(SETTLE_MS);
	for (int i = 0; i < NR; i++) {
		want_none(&q[i], self->by);
		kq_close(&q[i]);
	}
}

TEST_F(timer, dispatched_waits_until_it_is_enabled)
{
	struct periodic p;

	ASSERT_EQ(1, start_periodic(&self->q, &p, KEVENT_OP_ADD,
				    CLOCK_MONOTONIC, false, 0, NSEC_PER_MSEC,
				    KEVENT_DISPATCH));
	for (int i = 0; i < 8; i++) {
		want_counted_mode(&self->q, self->by, &p, KEVENT_DISPATCH);
		sleep_ms(i % 2 ? 0 : 5);
		want_none(&self->q, self->by);
		/* What it counted meanwhile is in the next event. */
		ASSERT_EQ(1, timer_op(&self->q, KEVENT_OP_ENABLE, IDENT));
	}
	want_counted_mode(&self->q, self->by, &p, KEVENT_DISPATCH);

	/* By modification it begins anew. */
	ASSERT_EQ(1, start_periodic(&self->q, &p, KEVENT_OP_MOD,
				    CLOCK_MONOTONIC, false, 0, NSEC_PER_MSEC,
				    KEVENT_DISPATCH));
	want_counted_mode(&self->q, self->by, &p, KEVENT_DISPATCH);
	want_silent(&self->q, self->by);
}

/*
 * Many
 */

#define MANY 1000

TEST_F_TIMEOUT(timer, thousand_expire_at_the_same_time_once_each, 60)
{
	struct ukevent *changes = calloc(MANY, sizeof(*changes)), ev;
	__s64 ends[ARRAY_SIZE(clocks)];
	bool seen[MANY];
	struct kq q;

	ASSERT_NE(NULL, changes);
	ASSERT_EQ(0, kq_open(&q, MANY));
	for (int turn = 0; turn < 2; turn++) {
		__u16 op = turn ? KEVENT_OP_MOD : KEVENT_OP_ADD;

		memset(seen, 0, sizeof(seen));
		for (size_t c = 0; c < ARRAY_SIZE(clocks); c++)
			ends[c] = clock_ns(clocks[c]) + 50 * NSEC_PER_MSEC;
		for (int i = 0; i < MANY; i++) {
			size_t c = i % ARRAY_SIZE(clocks);

			changes[i] = kq_timer_change(op, i, clocks[c] | ABS,
						     ends[c], 0, 0, ~i);
		}
		ASSERT_EQ(MANY, sys_kevent_ctl(q.fd, changes, MANY, 0));
		for (int i = 0; i < MANY; i++) {
			size_t c;

			ASSERT_EQ(1, kq_next(&q, self->by, &ev))
				TH_LOG("%d are missing", MANY - i);
			ASSERT_GT(MANY, ev.ident);
			ASSERT_FALSE(seen[ev.ident]);
			seen[ev.ident] = true;
			ASSERT_EQ(1, ev.events);
			ASSERT_EQ((__u64)~(int)ev.ident, ev.user_data);
			c = ev.ident % ARRAY_SIZE(clocks);
			ASSERT_LE(ends[c], clock_ns(clocks[c]));
		}
		want_silent(&q, self->by);
		EXPECT_EQ(0, kevent_ring_flags(&q.map));
	}
	kq_close(&q);
	free(changes);
}

/* Several threads claim the expiries of one timer. */
#define CLAIMERS 3

struct claimer {
	struct kq q;		/* with a cursor of its own */
	enum collect_by by;
	struct periodic *p;
	pthread_t thread;
	int wrong;
};

static void *claim_some(void *arg)
{
	struct claimer *c = arg;

	for (int i = 0; i < 200; i++) {
		struct ukevent ev;
		__u64 total;

		if (kq_next(&c->q, c->by, &ev) != 1 || ev.ident != IDENT ||
		    !ev.events || ev.events > KEVENT_COUNT_MAX) {
			c->wrong++;
			break;
		}
		total = __atomic_add_fetch(&c->p->total, ev.events,
					   __ATOMIC_SEQ_CST);
		if (total > due_at_most(c->p, now_ns()))
			c->wrong++;
	}
	return NULL;
}

TEST_F(timer, several_consumers_share_the_count)
{
	struct claimer c[CLAIMERS] = { };
	struct periodic p;

	ASSERT_EQ(1, start_periodic(&self->q, &p, KEVENT_OP_ADD,
				    CLOCK_MONOTONIC, false, 0,
				    50 * NSEC_PER_USEC, 0));
	for (int i = 0; i < CLAIMERS; i++) {
		c[i].q = self->q;
		c[i].by = i ? self->by : BY_RING;
		c[i].p = &p;
		ASSERT_EQ(0, pthread_create(&c[i].thread, NULL, claim_some,
					    &c[i]));
	}
	for (int i = 0; i < CLAIMERS; i++) {
		pthread_join(c[i].thread, NULL);
		EXPECT_EQ(0, c[i].wrong)
			TH_LOG("consumer %d", i);
	}
	for (int i = 0; i < 4; i++)
		want_counted(&self->q, self->by, &p);
}

/* What finds the ring full waits, and goes on counting. */
TEST_F(timer, overcommitted_loses_no_expiry)
{
	enum { NR = 8 };
	struct periodic p[NR];
	struct ukevent ev;
	struct kq q;

	ASSERT_EQ(0, kq_open_flags(&q, 1, KEVENT_INIT_OVERCOMMIT, 0));
	for (int i = 0; i < NR; i++) {
		struct periodic *t = &p[i];

		memset(t, 0, sizeof(*t));
		t->interval = (i + 1) * 100 * NSEC_PER_USEC;
		t->earliest = now_ns();
		ASSERT_EQ(1, kq_add_timer(&q, i, CLOCK_MONOTONIC, 0,
					  t->interval, i));
		t->latest = now_ns();
	}
	for (int i = 0; i < 400; i++) {
		struct periodic *t;
		__s64 begun = now_ns();

		/* The ring alone is not told by itself of what waits. */
		if (!(i % 16))
			ASSERT_LE(0, kq_let_in(&q));
		if (!kq_collect(&q, self->by, &ev, 1))
			ASSERT_EQ(1, kq_getevents(&q, &ev, 1, 1, PATIENCE_MS));
		ASSERT_EQ(KEVENT_SOURCE_TIMER, ev.source);
		ASSERT_GT(NR, ev.ident);
		t = &p[ev.ident];
		t->total += ev.events;
		EXPECT_LE(t->total, due_at_most(t, now_ns()))
			TH_LOG("timer %llu", ev.ident);
		if (t->claims++ >= 2) {
			EXPECT_GE(t->total, due_at_least(t, t->begun[1]))
				TH_LOG("timer %llu", ev.ident);
		}
		t->begun[1] = t->begun[0];
		t->begun[0] = begun;
	}
	for (int i = 0; i < NR; i++) {
		EXPECT_LT(0, p[i].claims)
			TH_LOG("timer %d was kept out", i);
		EXPECT_EQ(1, del_timer(&q, i));
	}
	want_silent(&q, self->by);
	kq_close(&q);
}

/*
 * A storm: threads change timers that expire all the time, others claim what
 * they say.
 */

#define OWNERS		2
#define OWNER_OPS	300
#define STORM_SLOTS	64
#define SHARED_IDENT	OWNERS	/* all owners change that */

/**
 * struct owned - a timer that one thread changes
 * @silent: odd while no event may be claimed: it is deleted or disabled.
 *	Changes whenever that does.
 * @oldest: the least user data that an event may have
 */
struct owned {
	unsigned int silent;
	__aligned_u64 oldest;
};

struct storm {
	struct kq q;
	struct owned owned[OWNERS];
	__u64 seed;
	int changing;		/* owners that are at work */
	int wrong;
	int ghosts;		/* events after the change that forbids them */
	int claims;
};

struct storm_thread {
	struct storm *st;
	int number;
	enum collect_by by;
	pthread_t thread;
};

static void count_one(int *what)
{
	__atomic_fetch_add(what, 1, __ATOMIC_RELAXED);
}

/* A timer that is active very soon, or all the time */
static struct ukevent storm_change(__u64 *random, __u16 op, __u64 ident,
				   __u32 mode, __u64 udata)
{
	static const __u64 intervals[] = {
		0, NSEC_PER_USEC, NSEC_PER_USEC, 10 * NSEC_PER_USEC,
		NSEC_PER_MSEC,
	};
	__u64 r = next_random(random);
	clockid_t clock = clocks[r % ARRAY_SIZE(clocks)];
	__u64 data = (r >> 8) % (20 * NSEC_PER_USEC);
	bool abs = r >> 32 & 1;

	if (abs)
		data += clock_ns(clock) - 10 * NSEC_PER_USEC;
	return kq_timer_change(op, ident, clock | (abs ? ABS : 0), data,
			       intervals[(r >> 40) % ARRAY_SIZE(intervals)],
			       mode, udata);
}

static void set_silent(struct owned *own, bool silent)
{
	if ((own->silent & 1) != silent)
		__atomic_fetch_add(&own->silent, 1, __ATOMIC_SEQ_CST);
}

/* Adds; the slots that cancelled events take come back with their claim. */
static int add_in_time(const struct kq *q, struct ukevent change)
{
	__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
	int ret;

	while ((ret = kq_apply(q, change)) == -ENOSPC && now_ns() < end)
		sched_yield();
	return ret;
}

/* One change of the timer that only this thread changes */
static bool change_owned(struct storm_thread *t, __u64 *random, bool *there,
			 __u64 udata)
{
	struct storm *st = t->st;
	struct owned *own = &st->owned[t->number];
	bool disabled = !(next_random(random) % 8);
	__u32 mode = disabled ? KEVENT_DISABLED : 0;
	bool was = *there;
	int ret;

	switch (next_random(random) % 6) {
	case 0:
	case 1:
		if (was)
			break;
		__atomic_store_n(&own->oldest, udata, __ATOMIC_SEQ_CST);
		if (!disabled)
			set_silent(own, false);
		ret = add_in_time(&st->q, storm_change(random, KEVENT_OP_ADD,
						       t->number, mode, udata));
		*there = true;
		return ret == 1;
	case 2:
		ret = del_timer(&st->q, t->number);
		set_silent(own, true);
		*there = false;
		return ret == (was ? 1 : -ENOENT);
	case 3:
		ret = timer_op(&st->q, KEVENT_OP_DISABLE, t->number);
		set_silent(own, true);
		return ret == (was ? 1 : -ENOENT);
	case 4:
		if (was)
			set_silent(own, false);
		ret = timer_op(&st->q, KEVENT_OP_ENABLE, t->number);
		return ret == (was ? 1 : -ENOENT);
	default:
		break;
	}
	if (was && !disabled)
		set_silent(own, false);
	ret = kq_apply(&st->q, storm_change(random, KEVENT_OP_MOD, t->number,
					    mode, udata));
	if (was) {
		__atomic_store_n(&own->oldest, udata, __ATOMIC_SEQ_CST);
		if (disabled)
			set_silent(own, true);
	}
	return ret == (was ? 1 : -ENOENT);
}

/* One change of the timer that everybody changes */
static bool change_shared(struct storm *st, __u64 *random)
{
	static const __u16 ops[] = {
		KEVENT_OP_ADD, KEVENT_OP_MOD, KEVENT_OP_DEL, KEVENT_OP_SET,
		KEVENT_OP_DISABLE, KEVENT_OP_ENABLE,
	};
	static const __u32 modes[] = {
		0, 0, KEVENT_ONESHOT, KEVENT_DISPATCH, KEVENT_DISABLED,
	};
	__u16 op = ops[next_random(random) % ARRAY_SIZE(ops)];
	__u32 mode = modes[next_random(random) % ARRAY_SIZE(modes)];
	int ret;

	if (op == KEVENT_OP_ADD || op == KEVENT_OP_MOD || op == KEVENT_OP_SET)
		ret = kq_apply(&st->q, storm_change(random, op, SHARED_IDENT,
						    mode, UDATA));
	else
		ret = timer_op(&st->q, op, SHARED_IDENT);
	return ret == 1 || ret == -ENOENT || ret == -EEXIST || ret == -ENOSPC;
}

/* On a busy machine, all timers can be changed before they expire. */
static bool goes_on(struct storm *st, int done)
{
	if (done < OWNER_OPS)
		return true;
	return done < 100 * OWNER_OPS &&
	       !__atomic_load_n(&st->claims, __ATOMIC_RELAXED);
}

static void *storm_change_timers(void *arg)
{
	struct storm_thread *t = arg;
	struct storm *st = t->st;
	__u64 random = st->seed + t->number;
	bool there = false;

	for (int i = 0; goes_on(st, i); i++) {
		if (!change_owned(t, &random, &there, i + 1))
			count_one(&st->wrong);
		if (!change_shared(st, &random))
			count_one(&st->wrong);
	}
	__atomic_fetch_sub(&st->changing, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void judge_claim(struct storm *st, const struct ukevent *ev,
			const struct owned *before)
{
	const struct owned *own;
	unsigned int silent;

	count_one(&st->claims);
	if (ev->source != KEVENT_SOURCE_TIMER || ev->ident > SHARED_IDENT ||
	    !ev->events || ev->events > KEVENT_COUNT_MAX) {
		count_one(&st->wrong);
		return;
	}
	if (ev->ident == SHARED_IDENT) {
		if (ev->user_data != UDATA)
			count_one(&st->wrong);
		return;
	}
	own = &st->owned[ev->ident];
	before += ev->ident;
	silent = __atomic_load_n(&own->silent, __ATOMIC_SEQ_CST);
	/* It was so all the time. */
	if (silent & 1 && silent == before->silent)
		count_one(&st->ghosts);
	if (ev->user_data < before->oldest)
		count_one(&st->ghosts);
}

static void *storm_claim(void *arg)
{
	struct storm_thread *t = arg;
	struct storm *st = t->st;
	struct kq q = st->q;
	bool over;

	do {
		struct owned before[OWNERS];
		struct ukevent ev;
		int nr;

		over = !__atomic_load_n(&st->changing, __ATOMIC_ACQUIRE);
		for (int i = 0; i < OWNERS; i++) {
			before[i].silent = __atomic_load_n(&st->owned[i].silent,
							   __ATOMIC_SEQ_CST);
			before[i].oldest = __atomic_load_n(&st->owned[i].oldest,
							   __ATOMIC_SEQ_CST);
		}
		nr = kq_collect(&q, t->by, &ev, 1);
		if (nr > 0)
			judge_claim(st, &ev, before);
		else if (nr < 0)
			count_one(&st->wrong);
		else
			sched_yield();
	} while (!over);
	return NULL;
}

/* The registrations may be gone already. */
static void end_storm(struct __test_metadata *_metadata, struct kq *q,
		      enum collect_by by)
{
	struct ukevent ev;

	for (int i = 0; i <= SHARED_IDENT; i++)
		del_timer(q, i);
	want_silent(q, by);
	/* The cancelled events are gone with that; all slots are free. */
	want_none(q, BY_RING);
	for (int i = 0; i < STORM_SLOTS; i++) {
		ASSERT_EQ(1, kq_add_timer(q, i, CLOCK_MONOTONIC, 0, 0, UDATA))
			TH_LOG("slot %d", i);
	}
	for (int i = 0; i < STORM_SLOTS; i++) {
		ASSERT_EQ(1, kq_next(q, by, &ev))
			TH_LOG("slot %d", i);
	}
	want_silent(q, by);
}

TEST_F_TIMEOUT(timer, changed_under_fire_says_nothing_of_before, 60)
{
	struct storm_thread owners[OWNERS], claimers[2];
	struct storm *st = calloc(1, sizeof(*st));
	int nr = 2;

	ASSERT_NE(NULL, st);
	ASSERT_EQ(0, kq_open(&st->q, STORM_SLOTS));
	st->seed = random_seed();
	st->changing = OWNERS;
	for (int i = 0; i < OWNERS; i++)
		st->owned[i].silent = 1;
	for (int i = 0; i < nr; i++) {
		claimers[i].st = st;
		claimers[i].by = i ? BY_RING : self->by;
		ASSERT_EQ(0, pthread_create(&claimers[i].thread, NULL,
					    storm_claim, &claimers[i]));
	}
	for (int i = 0; i < OWNERS; i++) {
		owners[i].st = st;
		owners[i].number = i;
		ASSERT_EQ(0, pthread_create(&owners[i].thread, NULL,
					    storm_change_timers, &owners[i]));
	}
	for (int i = 0; i < OWNERS; i++)
		pthread_join(owners[i].thread, NULL);
	for (int i = 0; i < nr; i++)
		pthread_join(claimers[i].thread, NULL);

	EXPECT_EQ(0, st->ghosts);
	EXPECT_EQ(0, st->wrong);
	EXPECT_LT(0, st->claims);
	end_storm(_metadata, &st->q, self->by);
	kq_close(&st->q);
	free(st);
}

/*
 * The end of the queue, and other processes
 */

/* Timers that fire all the time, each with an interval of its own */
static int add_fire(const struct kq *q, int nr)
{
	for (int i = 0; i < nr; i++) {
		int ret = kq_add_timer(q, i, clocks[i % ARRAY_SIZE(clocks)], 0,
				       (i + 1) * 2 * NSEC_PER_USEC, UDATA);

		if (ret != 1)
			return ret;
	}
	return 1;
}

TEST_F_TIMEOUT(timer, ends_with_the_queue_while_it_fires, 60)
{
	for (int i = 0; i < 60; i++) {
		struct waiter w = { .wait_only = i % 2 };
		bool waits = i % 3 == 0;
		struct kq q;

		ASSERT_EQ(0, kq_open(&q, SLOTS));
		if (waits)
			ASSERT_EQ(0, waiter_start(&w, &q, 1, 4));
		ASSERT_EQ(1, add_fire(&q, SLOTS));
		if (i % 4)
			sched_yield();
		if (i % 8 == 7)
			sleep_ms(1);
		if (i % 2)
			kq_unmap(&q);
		kq_close(&q);
		if (waits) {
			ASSERT_TRUE(waiter_join(&w));
			/* EBADF if it came too late */
			EXPECT_TRUE(w.ret > 0 || w.ret == -EBADF)
				TH_LOG("returned %d", w.ret);
		}
	}
	/* Another queue has not noticed anything. */
	want_silent(&self->q, self->by);
	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, CLOCK_MONOTONIC, 0, 0, 1));
	EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, 1));
}

TEST_F(timer, goes_on_while_the_queue_is_mapped)
{
	struct periodic p;

	ASSERT_EQ(1, start_periodic(&self->q, &p, KEVENT_OP_ADD,
				    CLOCK_MONOTONIC, false, 0, NSEC_PER_MSEC,
				    0));
	ASSERT_EQ(0, close(self->q.fd));
	self->q.fd = -1;
	for (int i = 0; i < 5; i++)
		want_counted(&self->q, BY_RING, &p);
}

TEST_F(timer, ends_with_the_process_that_has_the_queue)
{
	for (int i = 0; i < 20; i++) {
		pid_t pid = fork();

		ASSERT_LE(0, pid);
		if (!pid) {
			struct kq q;

			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (kq_open(&q, SLOTS) || add_fire(&q, SLOTS) != 1)
				_exit(1);
			if (i % 3)
				sleep_ms(i % 3 - 1);
			if (i % 2)
				kill(getpid(), SIGKILL);
			_exit(0);
		}
		EXPECT_EQ(i % 2 ? 128 + SIGKILL : 0, reap(pid));
	}
}

/* It is the queue's, not that of who has added it. */
TEST_F(timer, of_a_child_goes_on_without_it)
{
	struct periodic p;
	pid_t pid;

	ASSERT_EQ(1, start_periodic(&self->q, &p, KEVENT_OP_ADD,
				    CLOCK_MONOTONIC, false, HOUR_NS, HOUR_NS, 0));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* It finds that of its parent, too. */
		if (kq_add_timer(&self->q, IDENT, CLOCK_MONOTONIC, 0, 0, 1) !=
		    -EEXIST)
			_exit(1);
		if (del_timer(&self->q, IDENT) != 1)
			_exit(2);
		_exit(kq_add_timer(&self->q, 1, CLOCK_MONOTONIC, 0,
				   NSEC_PER_MSEC, 2) != 1);
	}
	EXPECT_EQ(0, reap(pid));
	EXPECT_EQ(-ENOENT, del_timer(&self->q, IDENT));
	for (int i = 0; i < 5; i++)
		want_expiry(&self->q, self->by, 1, 2);
	EXPECT_EQ(1, del_timer(&self->q, 1));
	want_silent(&self->q, self->by);
}

/* Parent and child claim from one timer: no expiry comes to both, or none. */
TEST_F(timer, shared_with_a_child_is_counted_once)
{
	struct periodic *p;
	pid_t pid;

	p = mmap(NULL, sizeof(*p), PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, p);
	ASSERT_EQ(1, start_periodic(&self->q, p, KEVENT_OP_ADD, CLOCK_MONOTONIC,
				    false, 0, 50 * NSEC_PER_USEC, 0));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		struct claimer c = { .q = self->q, .by = self->by, .p = p };

		claim_some(&c);
		_exit(c.wrong != 0);
	} else {
		struct claimer c = { .q = self->q, .by = BY_RING, .p = p };

		claim_some(&c);
		EXPECT_EQ(0, c.wrong);
	}
	EXPECT_EQ(0, reap(pid));
	for (int i = 0; i < 4; i++)
		want_counted(&self->q, self->by, p);
}

/*
 * Setting the clock
 */

FIXTURE(set) {
	struct kq q;
	enum collect_by by;
	__s64 step;
	__s64 ahead;		/* of the realtime clock, before all this */
};

FIXTURE_VARIANT(set) {
	enum collect_by by;
	__s64 step;		/* by which the clock is set */
};

FIXTURE_VARIANT_ADD(set, forward_ring) { BY_RING, HOUR_NS };
FIXTURE_VARIANT_ADD(set, forward_call) { BY_SYSCALL, HOUR_NS };
FIXTURE_VARIANT_ADD(set, backward_ring) { BY_RING, -HOUR_NS };
FIXTURE_VARIANT_ADD(set, backward_call) { BY_SYSCALL, -HOUR_NS };

/* Sets the clock to @step from what it should show. */
static int set_clock(__s64 ahead, __s64 step)
{
	__s64 ns = now_ns() + ahead + step;
	struct timespec ts = {
		.tv_sec = ns / NSEC_PER_SEC,
		.tv_nsec = ns % NSEC_PER_SEC,
	};

	return clock_settime(CLOCK_REALTIME, &ts) ? -errno : 0;
}

FIXTURE_SETUP(set)
{
	int err;

	self->by = variant->by;
	self->step = variant->step;
	if (!kq_setup(_metadata, &self->q, SLOTS))
		return;
	self->ahead = clock_ns(CLOCK_REALTIME) - now_ns();
	/* There has to be room to set it back, too. */
	if (self->ahead < 4 * DAY)
		SKIP(return, "the clock has not shown enough time");
	err = set_clock(self->ahead, 0);
	if (err == -EPERM)
		SKIP(return, "setting the clock takes CAP_SYS_TIME");
	ASSERT_EQ(0, err);
}

/* In the parent, so that the clock is right even after a crash */
FIXTURE_TEARDOWN_PARENT(set)
{
	set_clock(self->ahead, 0);
}

static __u64 realtime_in(__s64 ns)
{
	return clock_ns(CLOCK_REALTIME) + ns;
}

#define want_canceled(ident, udata) \
	EXPECT_EQ(KEVENT_TIMER_CANCELED, \
		  want_expiry(&self->q, self->by, ident, udata))

TEST_F(set, ends_those_that_want_it_and_no_others)
{
	struct kq other;
	int nr = 0;

	ASSERT_EQ(0, kq_open(&other, SLOTS));
	for (size_t i = 0; i < ARRAY_SIZE(clocks); i++) {
		ASSERT_EQ(1, kq_add_timer(&self->q, nr++, clocks[i], DAY, 0,
					  1));
		ASSERT_EQ(1, kq_add_timer(&self->q, nr++, clocks[i] | ABS,
					  clock_ns(clocks[i]) + DAY, HOUR_NS, 1));
	}
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, kq_add_timer(&self->q, nr + i,
					  CLOCK_REALTIME | CANCEL,
					  realtime_in(DAY), i * HOUR_NS, 2));
		ASSERT_EQ(1, kq_add_timer(&other, i, CLOCK_REALTIME | CANCEL,
					  i ? realtime_in(i * DAY) : NEVER, 0,
					  3));
	}
	want_silent(&self->q, self->by);
	want_none(&other, self->by);

	ASSERT_EQ(0, set_clock(self->ahead, self->step));
	for (int i = 0; i < 6; i++) {
		struct kq *q = i < 3 ? &self->q : &other;
		struct ukevent ev;

		/* In any order */
		ASSERT_EQ(1, kq_next(q, self->by, &ev));
		EXPECT_EQ(i < 3 ? 2 : 3, ev.user_data);
		EXPECT_EQ(KEVENT_TIMER_CANCELED, ev.events);
	}
	want_silent(&self->q, self->by);
	want_none(&other, self->by);
	kq_close(&other);
}

TEST_F(set, once_is_reported_once)
{
	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, CLOCK_REALTIME | CANCEL,
				  realtime_in(DAY), HOUR_NS, UDATA));
	ASSERT_EQ(0, set_clock(self->ahead, self->step));
	want_canceled(IDENT, UDATA);
	/* It has ended: neither this nor its time means anything to it. */
	ASSERT_EQ(0, set_clock(self->ahead, -self->step));
	want_none(&self->q, self->by);
	ASSERT_EQ(0, set_clock(self->ahead, 2 * DAY));
	want_silent(&self->q, self->by);
	EXPECT_EQ(1, del_timer(&self->q, IDENT));
}

TEST_F(set, can_be_followed_by_a_modification)
{
	for (int i = 0; i < 4; i++) {
		__s64 step = i % 2 ? 0 : self->step;

		ASSERT_EQ(1, set_timer(&self->q, KEVENT_OP_SET, IDENT,
				       CLOCK_REALTIME | CANCEL,
				       realtime_in(DAY), 0, 0, i));
		ASSERT_EQ(0, set_clock(self->ahead, step));
		want_canceled(IDENT, i);
	}
	/* To a time that comes, and to what does not mind */
	ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT, CLOCK_REALTIME | CANCEL,
				  realtime_in(NSEC_PER_MSEC), 0, 8));
	EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, 8));
	ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT, CLOCK_REALTIME | CANCEL,
				  realtime_in(DAY), 0, 9));
	ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT, CLOCK_REALTIME | ABS,
				  realtime_in(DAY), 0, 10));
	ASSERT_EQ(0, set_clock(self->ahead, self->step));
	want_silent(&self->q, self->by);
}

TEST_F(set, can_be_followed_by_enable)
{
	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, CLOCK_REALTIME | CANCEL,
				  realtime_in(DAY), 0, UDATA));
	for (int i = 0; i < 4; i++) {
		ASSERT_EQ(0, set_clock(self->ahead, i % 2 ? 0 : self->step));
		want_canceled(IDENT, UDATA);
		want_none(&self->q, self->by);
		ASSERT_EQ(1, timer_op(&self->q, KEVENT_OP_ENABLE, IDENT));
		want_silent(&self->q, self->by);
	}
}

/* Enabled when its time has passed meanwhile, it expires at once. */
TEST_F(set, past_the_time_is_seen_by_enable)
{
	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, CLOCK_REALTIME | CANCEL,
				  realtime_in(DAY), 0, UDATA));
	ASSERT_EQ(0, set_clock(self->ahead, self->step));
	want_canceled(IDENT, UDATA);
	ASSERT_EQ(0, set_clock(self->ahead, 2 * DAY));
	want_silent(&self->q, self->by);
	ASSERT_EQ(1, timer_op(&self->q, KEVENT_OP_ENABLE, IDENT));
	EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, UDATA));
	want_silent(&self->q, self->by);
}

/* Moved before that, and after it with the event that was not claimed */
TEST_F(set, is_reported_where_the_timer_was_moved_to)
{
	struct kq other;

	ASSERT_EQ(0, kq_open(&other, SLOTS));
	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, CLOCK_REALTIME | CANCEL,
				  realtime_in(DAY), 0, UDATA));
	ASSERT_EQ(1, kq_move(&self->q, &other, KEVENT_SOURCE_TIMER, IDENT, 0));
	want_none(&other, self->by);
	ASSERT_EQ(0, set_clock(self->ahead, self->step));
	EXPECT_EQ(KEVENT_TIMER_CANCELED,
		  want_expiry(&other, self->by, IDENT, UDATA));
	EXPECT_EQ(-ENOENT, timer_op(&self->q, KEVENT_OP_ENABLE, IDENT));

	ASSERT_EQ(1, timer_op(&other, KEVENT_OP_ENABLE, IDENT));
	ASSERT_EQ(0, set_clock(self->ahead, 0));
	ASSERT_EQ(1, kq_move(&other, &self->q, KEVENT_SOURCE_TIMER, IDENT, 0));
	want_canceled(IDENT, UDATA);
	/* It has ended, and moving does not change that. */
	ASSERT_EQ(1, kq_move(&self->q, &other, KEVENT_SOURCE_TIMER, IDENT, 0));
	ASSERT_EQ(0, set_clock(self->ahead, self->step));
	want_silent(&self->q, self->by);
	want_none(&other, self->by);
	EXPECT_EQ(1, del_timer(&other, IDENT));
	kq_close(&other);
}

/* The flag goes into whatever event there is, beside the count. */
TEST_F(set, ends_a_timer_that_fires)
{
	__u32 value;
	int i = 0;

	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, CLOCK_REALTIME | CANCEL,
				  realtime_in(0), NSEC_PER_MSEC, UDATA));
	want_expiry(&self->q, self->by, IDENT, UDATA);
	sleep_ms(3);
	ASSERT_EQ(0, set_clock(self->ahead, self->step));
	do {
		value = want_expiry(&self->q, self->by, IDENT, UDATA);
	} while (!(value & KEVENT_TIMER_CANCELED) && ++i < 1000);
	EXPECT_TRUE(value & KEVENT_TIMER_CANCELED);
	want_silent(&self->q, self->by);
}

TEST_F(set, ends_a_one_shot_with_its_only_event)
{
	ASSERT_EQ(1, set_timer(&self->q, KEVENT_OP_ADD, IDENT,
			       CLOCK_REALTIME | CANCEL, realtime_in(DAY), 0,
			       KEVENT_ONESHOT, UDATA));
	ASSERT_EQ(0, set_clock(self->ahead, self->step));
	EXPECT_EQ(KEVENT_TIMER_CANCELED,
		  want_expiry_mode(&self->q, self->by, IDENT, KEVENT_ONESHOT,
				   UDATA));
	EXPECT_EQ(-ENOENT, del_timer(&self->q, IDENT));
}

/* An absolute time is one of the clock, whatever is done to that. */
TEST_F(set, moves_absolute_times)
{
	__u64 end = realtime_in(NSEC_PER_SEC / 10);

	/* In this order, so that it cannot have expired. */
	ASSERT_EQ(0, set_clock(self->ahead, -DAY));
	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, CLOCK_REALTIME | ABS, end, 0,
				  UDATA));
	want_none(&self->q, self->by);
	ASSERT_EQ(0, set_clock(self->ahead, -DAY + self->step));
	sleep_ms(100);
	want_silent(&self->q, self->by);
	ASSERT_EQ(0, set_clock(self->ahead, DAY));
	EXPECT_EQ(1, want_expiry(&self->q, self->by, IDENT, UDATA));
	EXPECT_LE(end, realtime_in(0));
	/* It expires once, even if its time comes twice. */
	ASSERT_EQ(0, set_clock(self->ahead, -DAY));
	ASSERT_EQ(0, set_clock(self->ahead, DAY));
	want_silent(&self->q, self->by);
}

TEST_F(set, counts_the_periods_that_were_skipped)
{
	const __s64 minute = 60 * NSEC_PER_SEC;
	__u64 least = DAY / minute;
	__u32 value;
	__s64 first;

	first = realtime_in(minute);
	ASSERT_EQ(1, kq_add_timer(&self->q, IDENT, CLOCK_REALTIME | ABS, first,
				  minute, UDATA));
	ASSERT_EQ(0, set_clock(self->ahead, self->step - DAY));
	want_silent(&self->q, self->by);
	ASSERT_EQ(0, set_clock(self->ahead, DAY));
	value = want_expiry(&self->q, self->by, IDENT, UDATA);
	EXPECT_LE(value, due(first, minute, realtime_in(0)));
	EXPECT_LE(least - 1, value);
}

/* Time that passes is another matter. */
TEST_F(set, does_not_concern_relative_times)
{
	const __s64 delay = 50 * NSEC_PER_MSEC;
	size_t nr = ARRAY_SIZE(clocks);
	__s64 start = now_ns();

	for (size_t i = 0; i < nr; i++) {
		ASSERT_EQ(1, kq_add_timer(&self->q, i, clocks[i], delay, 0,
					  i));
		ASSERT_EQ(1, kq_add_timer(&self->q, nr + i, clocks[i], HOUR_NS / 2,
					  HOUR_NS / 2, i));
	}
	ASSERT_EQ(0, set_clock(self->ahead, self->step));
	for (size_t i = 0; i < nr; i++) {
		struct ukevent ev;

		ASSERT_EQ(1, kq_next(&self->q, self->by, &ev));
		EXPECT_GT(nr, ev.ident);
		EXPECT_EQ(1, ev.events);
		EXPECT_LE(delay, now_ns() - start);
	}
	want_silent(&self->q, self->by);
}

struct setter {
	pthread_t thread;
	__s64 ahead;
	int over;
	int errors;
};

static void *set_again_and_again(void *arg)
{
	struct setter *s = arg;

	for (int i = 0; !__atomic_load_n(&s->over, __ATOMIC_ACQUIRE); i++) {
		if (set_clock(s->ahead, i % 2 ? 0 : NSEC_PER_SEC))
			s->errors++;
		sched_yield();
	}
	return NULL;
}

TEST_F(set, races_with_changes_and_the_end)
{
	struct setter s = { .ahead = self->ahead };
	struct kq q;

	ASSERT_EQ(0, pthread_create(&s.thread, NULL, set_again_and_again, &s));
	for (int i = 0; i < 150; i++) {
		ASSERT_EQ(1, kq_add_timer(&self->q, IDENT,
					  CLOCK_REALTIME | CANCEL,
					  realtime_in(DAY), 0, 1));
		ASSERT_EQ(1, kq_mod_timer(&self->q, IDENT,
					  CLOCK_REALTIME | (i % 2 ? CANCEL : ABS),
					  realtime_in(DAY), NSEC_PER_MSEC, 2));
		if (i % 2)
			want_expiry(&self->q, self->by, IDENT, 2);
		ASSERT_EQ(1, del_timer(&self->q, IDENT));
		want_none(&self->q, self->by);

		ASSERT_EQ(0, kq_open(&q, 4));
		for (int n = 0; n < 4; n++)
			ASSERT_EQ(1, kq_add_timer(&q, n,
						  CLOCK_REALTIME | CANCEL,
						  realtime_in(DAY), 0, n));
		kq_close(&q);
	}
	__atomic_store_n(&s.over, 1, __ATOMIC_RELEASE);
	pthread_join(s.thread, NULL);
	EXPECT_EQ(0, s.errors);
}

TEST_HARNESS_MAIN
