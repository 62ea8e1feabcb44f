// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: the options of kevent_getevents().  Its signal mask, its deadline, the
 * least time that it waits for all that is wanted, and the changes that it
 * applies first; and what becomes of a wake-up that a waiter does not use.
 */
#include "kevent_util.h"

#include <limits.h>
#include <sys/prctl.h>
#include <sys/timex.h>

#define SLOTS	16
/* User events 0 to NR - 1 are registered; their number is the user data. */
#define NR	12

/*
 * Signals
 */

#define MAX_SIGNAL 64

static int caught[MAX_SIGNAL + 1];

static void count_signal(int sig)
{
	__atomic_fetch_add(&caught[sig], 1, __ATOMIC_RELEASE);
}

static int nr_caught(int sig)
{
	return __atomic_load_n(&caught[sig], __ATOMIC_ACQUIRE);
}

static int count_signals(int sig, int flags)
{
	struct sigaction sa = { .sa_handler = count_signal, .sa_flags = flags };

	return sigaction(sig, &sa, NULL);
}

/* Masks are those of the kernel, 64 signals in 32-bit programs too. */
static __u64 sig_bit(int sig)
{
	return 1ULL << (sig - 1);
}

static __u64 change_mask(int how, __u64 set)
{
	__u64 old = 0;

	syscall(__NR_rt_sigprocmask, how, &set, &old, sizeof(set));
	return old;
}

static __u64 blocked_signals(void)
{
	return change_mask(SIG_BLOCK, 0);
}

static bool is_pending(int sig)
{
	__u64 set = 0;

	syscall(__NR_rt_sigpending, &set, sizeof(set));
	return set & sig_bit(sig);
}

/*
 * A call of kevent_getevents(), in a thread of its own or not
 */

struct call {
	const struct kq *q;
	struct kevent_getopts opts;
	__u64 mask;
	unsigned int min;
	unsigned int max;	/* zero: collect nothing */
	bool forever;		/* give no timeout */
	struct __kernel_timespec timeout;
	pthread_t thread;
	pid_t tid;
	int done;
	int ret;
	__u64 blocked;		/* the signals that are blocked afterwards */
	struct ukevent evs[SLOTS];
};

static void call_init(struct call *c, const struct kq *q, unsigned int min,
		      bool collects)
{
	memset(c, 0, sizeof(*c));
	c->q = q;
	c->opts = kq_opts(0);
	c->min = min;
	c->max = collects ? SLOTS : 0;
	/* Long enough to tell a lost wake-up from a slow one */
	c->timeout = ms_to_timespec(2 * PATIENCE_MS);
}

static void call_set_mask(struct call *c, __u64 mask)
{
	c->mask = mask;
	c->opts.sigmask = (uintptr_t)&c->mask;
	c->opts.sigsetsize = sizeof(c->mask);
}

static void call_set_deadline(struct call *c, clockid_t clock, __s64 end)
{
	c->opts.flags |= KEVENT_GET_ABSTIME;
	c->opts.clock = clock;
	c->timeout = ns_to_timespec(end);
}

static void call_set_changes(struct call *c, struct ukevent *changes,
			     unsigned int nr)
{
	c->opts.changes = (uintptr_t)changes;
	c->opts.nr_changes = nr;
}

static int call_do(struct call *c)
{
	c->ret = sys_kevent_getevents(c->q->fd, c->max ? c->evs : NULL, c->min,
				      c->max, c->forever ? NULL : &c->timeout,
				      &c->opts);
	c->blocked = blocked_signals();
	return c->ret;
}

static void *call_fn(void *arg)
{
	struct call *c = arg;

	__atomic_store_n(&c->tid, syscall(__NR_gettid), __ATOMIC_RELEASE);
	call_do(c);
	__atomic_store_n(&c->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static int call_begin(struct call *c)
{
	c->tid = 0;
	c->done = 0;
	return pthread_create(&c->thread, NULL, call_fn, c);
}

static int call_start(struct call *c)
{
	int err = call_begin(c);

	if (!err)
		wait_until_asleep(&c->tid, &c->done);
	return err;
}

static bool call_done(struct call *c)
{
	return __atomic_load_n(&c->done, __ATOMIC_ACQUIRE);
}

/* False if it has not come to its end, after all the time it could want */
static bool call_join(struct call *c)
{
	__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;

	while (!call_done(c)) {
		if (now_ns() > end)
			return false;
		sleep_ms(1);
	}
	pthread_join(c->thread, NULL);
	return true;
}

/* For a call that might hang if the test fails */
static bool call_run(struct call *c)
{
	return !call_start(c) && call_join(c);
}

/* Signals are sent until they have hit the call. */
static bool call_join_by_signal(struct call *c, int sig)
{
	for (int ms = 0; ms < PATIENCE_MS && !call_done(c); ms++) {
		pthread_kill(c->thread, sig);
		sleep_ms(1);
	}
	return call_join(c);
}

/* How many events there are in the ring; looking at them disturbs nobody. */
static unsigned int unclaimed(const struct kq *q)
{
	unsigned int nr = 0;

	for (__u32 i = 0; i < q->map.nr_slots; i++) {
		__u64 word = kevent_slot_word(kevent_ring_slot(&q->map, i));

		nr += (word & KEVENT_WORD_READY) && KEVENT_WORD_VALUE(word);
	}
	return nr;
}

static bool wait_for_unclaimed(const struct kq *q, unsigned int nr)
{
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		if (unclaimed(q) == nr)
			return true;
		sleep_ms(1);
	}
	return false;
}

static int trigger(const struct kq *q, int i)
{
	return kq_trigger(q, i, 1, 0);
}

static struct ukevent trigger_change(int i)
{
	return kq_trigger_change(i, 1, 0);
}

static struct ukevent del_change(int i)
{
	return kq_change(KEVENT_SOURCE_USER, KEVENT_OP_DEL, i, 0);
}

static int del(const struct kq *q, int i)
{
	return kq_apply(q, del_change(i));
}

static bool setup_queue(struct __test_metadata *_metadata, struct kq *q,
			__u32 init_flags)
{
	if (!kq_setup_flags(_metadata, q, SLOTS, init_flags))
		return false;
	for (int i = 0; i < NR; i++)
		ASSERT_EQ(1, kq_add_user(q, i, KEVENT_USER_COUNT, 0, i));
	return true;
}

/* All is tested with calls that collect and with calls that wait only. */
FIXTURE(call) {
	struct kq q;
	__u64 blocked;		/* among them SIGUSR1 and SIGRTMAX */
	struct call c;
};

FIXTURE_VARIANT(call) {
	bool collects;
};

FIXTURE_VARIANT_ADD(call, collects) { true };
FIXTURE_VARIANT_ADD(call, only_waits) { false };

FIXTURE_SETUP(call)
{
	ASSERT_EQ(0, count_signals(SIGUSR1, 0));
	ASSERT_EQ(0, count_signals(SIGUSR2, SA_RESTART));
	ASSERT_EQ(0, count_signals(SIGRTMAX, 0));
	change_mask(SIG_BLOCK, sig_bit(SIGUSR1) | sig_bit(SIGRTMAX));
	self->blocked = blocked_signals();
	setup_queue(_metadata, &self->q, 0);
}

FIXTURE_TEARDOWN(call)
{
	kq_close(&self->q);
}

#define init_call(min) call_init(&self->c, &self->q, min, variant->collects)

/*
 * The call has to have found the user events that are the bits of @events, and
 * no others.  They are claimed afterwards in any case.
 */
static void __want_got(struct __test_metadata *_metadata, int line,
		       struct call *c, struct kq *q, __u64 blocked,
		       unsigned int events)
{
	unsigned int nr = __builtin_popcount(events);
	unsigned int seen = 0;
	struct ukevent ev;

	if (c->max) {
		ASSERT_EQ(nr, c->ret)
			TH_LOG("line %d", line);
		for (unsigned int i = 0; i < nr; i++)
			seen |= 1U << c->evs[i].user_data;
	} else {
		EXPECT_EQ(nr < c->min ? nr : c->min, c->ret)
			TH_LOG("line %d", line);
		while (kq_collect(q, BY_RING, &ev, 1))
			seen |= 1U << ev.user_data;
	}
	EXPECT_EQ(events, seen)
		TH_LOG("line %d", line);
	EXPECT_EQ(0, unclaimed(q))
		TH_LOG("line %d", line);
	EXPECT_EQ(blocked, c->blocked)
		TH_LOG("line %d", line);
}

#define want_got(events)						\
	__want_got(_metadata, __LINE__, &self->c, &self->q,		\
		   self->blocked, events)

/* The call has failed, and the events are there as before. */
static void __want_failed(struct __test_metadata *_metadata, int line,
			  struct call *c, __u64 blocked, int err,
			  unsigned int nr)
{
	EXPECT_EQ(err, c->ret)
		TH_LOG("line %d", line);
	EXPECT_EQ(nr, unclaimed(c->q))
		TH_LOG("line %d", line);
	EXPECT_EQ(blocked, c->blocked)
		TH_LOG("line %d", line);
}

#define want_failed(err, nr)						\
	__want_failed(_metadata, __LINE__, &self->c, self->blocked,	\
		      err, nr)

/*
 * The signal mask
 */

TEST_F(call, mask_lets_a_pending_signal_end_it)
{
	/* One in each half of the mask */
	int sigs[] = { SIGUSR1, SIGRTMAX };

	for (size_t i = 0; i < ARRAY_SIZE(sigs); i++) {
		init_call(1);
		call_set_mask(&self->c, self->blocked & ~sig_bit(sigs[i]));
		raise(sigs[i]);
		EXPECT_EQ(0, nr_caught(sigs[i]));
		call_do(&self->c);
		want_failed(-EINTR, 0);
		EXPECT_EQ(1, nr_caught(sigs[i]));
		EXPECT_FALSE(is_pending(sigs[i]));

		/* That was all. */
		self->c.timeout = ms_to_timespec(1);
		call_do(&self->c);
		want_got(0);
		EXPECT_EQ(1, nr_caught(sigs[i]));
	}
}

/* Neither with nothing to wait for, nor with no time to wait */
TEST_F(call, mask_lets_no_signal_end_what_does_not_wait)
{
	for (int min = 0; min <= 1; min++) {
		init_call(min);
		self->c.timeout = ms_to_timespec(0);
		self->c.forever = !min;
		call_set_mask(&self->c, self->blocked & ~sig_bit(SIGUSR1));
		raise(SIGUSR1);
		call_do(&self->c);
		want_got(0);
		EXPECT_EQ(0, nr_caught(SIGUSR1));
		EXPECT_TRUE(is_pending(SIGUSR1));
	}
	/* Where it waits, it is caught. */
	init_call(1);
	call_set_mask(&self->c, self->blocked & ~sig_bit(SIGUSR1));
	call_do(&self->c);
	want_failed(-EINTR, 0);
	EXPECT_EQ(1, nr_caught(SIGUSR1));
}

/* It comes before the call, on its way to sleep, or while it sleeps. */
TEST_F_TIMEOUT(call, mask_lets_a_signal_that_comes_end_it, 60)
{
	for (int i = 0; i < 45; i++) {
		init_call(1);
		call_set_mask(&self->c, self->blocked & ~sig_bit(SIGUSR1));
		ASSERT_EQ(0, i % 3 ? call_begin(&self->c) :
				     call_start(&self->c));
		while (i % 3 == 2 && !__atomic_load_n(&self->c.tid,
						      __ATOMIC_ACQUIRE))
			;
		EXPECT_EQ(i, nr_caught(SIGUSR1));
		pthread_kill(self->c.thread, SIGUSR1);
		ASSERT_TRUE(call_join(&self->c))
			TH_LOG("signal %d was lost", i);
		want_failed(-EINTR, 0);
		EXPECT_EQ(i + 1, nr_caught(SIGUSR1));
	}
}

TEST_F(call, mask_keeps_a_signal_out)
{
	struct ukevent change = trigger_change(0);

	change_mask(SIG_UNBLOCK, sig_bit(SIGUSR1));
	self->blocked = blocked_signals();
	init_call(2);
	call_set_mask(&self->c, self->blocked | sig_bit(SIGUSR1));
	call_set_changes(&self->c, &change, 1);
	ASSERT_EQ(0, call_start(&self->c));
	/* From here on it is in the kernel. */
	ASSERT_TRUE(wait_for_unclaimed(&self->q, 1));
	pthread_kill(self->c.thread, SIGUSR1);
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(call_done(&self->c));
	EXPECT_EQ(0, nr_caught(SIGUSR1));
	ASSERT_EQ(1, trigger(&self->q, 1));
	ASSERT_TRUE(call_join(&self->c));
	want_got(1 << 0 | 1 << 1);
	/* And then it lets it in. */
	EXPECT_EQ(1, nr_caught(SIGUSR1));
}

TEST_F(call, mask_is_restored_whatever_ends_it)
{
	__u64 masks[] = { 0, ~0ULL };
	struct ukevent change;

	for (size_t i = 0; i < ARRAY_SIZE(masks); i++) {
		/* The timeout */
		init_call(1);
		call_set_mask(&self->c, masks[i]);
		self->c.timeout = ms_to_timespec(1);
		call_do(&self->c);
		want_got(0);

		/* An event */
		ASSERT_EQ(1, trigger(&self->q, 3));
		call_do(&self->c);
		want_got(1 << 3);

		/* A buffer that is not there */
		if (variant->collects) {
			ASSERT_EQ(1, trigger(&self->q, 3));
			self->c.ret = kq_getevents_opts(&self->q, (void *)8, 1,
							1, 0, &self->c.opts);
			self->c.blocked = blocked_signals();
			want_failed(-EFAULT, 1);
			call_do(&self->c);
			want_got(1 << 3);
		}

		/* A change that fails */
		change = del_change(99);
		call_set_changes(&self->c, &change, 1);
		call_do(&self->c);
		want_failed(-ENOENT, 0);

		/* An option that is not known */
		self->c.opts.flags = 1U << 31;
		call_do(&self->c);
		want_failed(-EINVAL, 0);

		/* Somebody who tells all to return */
		init_call(1);
		call_set_mask(&self->c, masks[i]);
		ASSERT_EQ(0, call_start(&self->c));
		for (int ms = 0; ms < PATIENCE_MS; ms++) {
			ASSERT_EQ(1, kq_wake(&self->q));
			if (call_done(&self->c))
				break;
			sleep_ms(1);
		}
		ASSERT_TRUE(call_join(&self->c));
		want_got(0);
	}
}

/* Whichever goes first, the other is there later. */
TEST_F(call, mask_loses_no_signal_to_an_event)
{
	init_call(1);
	call_set_mask(&self->c, self->blocked & ~sig_bit(SIGUSR1));
	for (int i = 1; i <= 5; i++) {
		raise(SIGUSR1);
		ASSERT_EQ(1, trigger(&self->q, 0));
		if (call_do(&self->c) == -EINTR)
			call_do(&self->c);
		want_got(1 << 0);
		EXPECT_EQ(i, nr_caught(SIGUSR1) + is_pending(SIGUSR1));
		if (is_pending(SIGUSR1)) {
			call_do(&self->c);
			want_failed(-EINTR, 0);
		}
		EXPECT_EQ(i, nr_caught(SIGUSR1));
		EXPECT_FALSE(is_pending(SIGUSR1));
	}
}

/*
 * A thread catches signals in the call only, each of them once, while it collects
 * events, each of them once.
 */

#define FIRE_SIGNALS	300

static struct {
	int in_call;
	int outside;		/* signals that were caught elsewhere */
	int nr;
	int seen[FIRE_SIGNALS];
} fire;

static void fire_signal(int sig __maybe_unused, siginfo_t *info,
			void *context __maybe_unused)
{
	if (!__atomic_load_n(&fire.in_call, __ATOMIC_RELAXED))
		__atomic_fetch_add(&fire.outside, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&fire.seen[info->si_value.sival_int], 1,
			   __ATOMIC_RELAXED);
	__atomic_fetch_add(&fire.nr, 1, __ATOMIC_RELEASE);
}

struct fire_thread {
	struct kq q;
	bool collects;
	pthread_t thread;
	int done;
	int wrong;
	__aligned_u64 sum;
};

static void *fire_fn(void *arg)
{
	struct fire_thread *t = arg;
	struct ukevent evs[4];

	while (__atomic_load_n(&fire.nr, __ATOMIC_ACQUIRE) < FIRE_SIGNALS ||
	       t->sum < FIRE_SIGNALS) {
		struct call c;
		int nr;

		call_init(&c, &t->q, 1, t->collects);
		call_set_mask(&c, blocked_signals() & ~sig_bit(SIGRTMAX));
		__atomic_store_n(&fire.in_call, 1, __ATOMIC_RELAXED);
		nr = call_do(&c);
		__atomic_store_n(&fire.in_call, 0, __ATOMIC_RELAXED);
		if (!(c.blocked & sig_bit(SIGRTMAX)))
			t->wrong++;
		if (nr == -EINTR)
			continue;
		if (nr <= 0) {
			t->wrong++;
			break;
		}
		if (!t->collects)
			nr = kq_collect(&t->q, BY_RING, evs, ARRAY_SIZE(evs));
		for (int i = 0; i < nr; i++)
			t->sum += t->collects ? c.evs[i].events : evs[i].events;
	}
	__atomic_store_n(&t->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

TEST_F_TIMEOUT(call, mask_loses_nothing_and_doubles_nothing_under_fire, 60)
{
	struct sigaction sa = {
		.sa_sigaction = fire_signal,
		.sa_flags = SA_SIGINFO | SA_RESTART,
	};
	struct fire_thread t = { .q = self->q, .collects = variant->collects };
	__u64 random = random_seed();

	ASSERT_EQ(0, sigaction(SIGRTMAX, &sa, NULL));
	ASSERT_EQ(0, pthread_create(&t.thread, NULL, fire_fn, &t));
	for (int i = 0; i < FIRE_SIGNALS; i++) {
		__u64 rnd = next_random(&random);
		union sigval value = { .sival_int = i };
		int err;

		if (rnd & 1)
			ASSERT_EQ(1, trigger(&self->q, (rnd >> 8) % NR));
		/* There can be too many that are pending. */
		for (int ms = 0; ms < PATIENCE_MS; ms++) {
			err = pthread_sigqueue(t.thread, SIGRTMAX, value);
			if (err != EAGAIN)
				break;
			sleep_ms(1);
		}
		ASSERT_EQ(0, err);
		if (!(rnd & 1))
			ASSERT_EQ(1, trigger(&self->q, (rnd >> 8) % NR));
		if (!(rnd >> 4 & 3))
			sched_yield();
	}
	for (int ms = 0; ms < 2 * PATIENCE_MS; ms++) {
		if (__atomic_load_n(&t.done, __ATOMIC_ACQUIRE))
			break;
		sleep_ms(1);
	}
	ASSERT_EQ(1, t.done)
		TH_LOG("%d signals, %llu events", fire.nr, t.sum);
	pthread_join(t.thread, NULL);
	EXPECT_EQ(0, t.wrong);
	EXPECT_EQ(0, fire.outside);
	EXPECT_EQ(FIRE_SIGNALS, fire.nr);
	EXPECT_EQ(FIRE_SIGNALS, t.sum);
	for (int i = 0; i < FIRE_SIGNALS; i++) {
		EXPECT_EQ(1, fire.seen[i])
			TH_LOG("signal %d", i);
	}
}

/* A process that makes the call: zero if a signal ended that */
static pid_t fork_call(struct call *c)
{
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		call_do(c);
		_exit(c->ret == -EINTR ? 0 : 1);
	}
	return pid;
}

/* As reap(), but a process that hangs is killed in the end. */
static int reap_soon(pid_t pid)
{
	int status;

	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			return WIFEXITED(status) ? WEXITSTATUS(status) :
						   128 + WTERMSIG(status);
		sleep_ms(1);
	}
	kill(pid, SIGKILL);
	reap(pid);
	return -ETIME;
}

TEST_F(call, mask_cannot_keep_out_a_kill)
{
	pid_t pid;

	init_call(1);
	call_set_mask(&self->c, ~0ULL);
	self->c.forever = true;
	pid = fork_call(&self->c);
	ASSERT_LT(0, pid);
	wait_until_process_asleep(pid);
	kill(pid, SIGKILL);
	EXPECT_EQ(128 + SIGKILL, reap_soon(pid));
}

/*
 * Signals without a mask
 */

TEST_F(call, is_not_restarted_after_a_signal)
{
	struct ukevent change = kq_user_change(KEVENT_OP_ADD, 50,
					       KEVENT_USER_COUNT, 0, 50);

	init_call(1);
	self->c.opts.min_wait = HOUR_NS;
	call_set_deadline(&self->c, CLOCK_MONOTONIC, now_ns() + HOUR_NS);
	call_set_changes(&self->c, &change, 1);
	ASSERT_EQ(0, call_start(&self->c));
	/* Restarted, it would find the change made. */
	ASSERT_TRUE(call_join_by_signal(&self->c, SIGUSR2));
	want_failed(-EINTR, 0);
	EXPECT_LE(1, nr_caught(SIGUSR2));
	EXPECT_EQ(1, del(&self->q, 50));
}

TEST_F(call, is_not_ended_by_a_signal_that_is_ignored)
{
	ASSERT_NE(SIG_ERR, signal(SIGUSR2, SIG_IGN));
	init_call(1);
	ASSERT_EQ(0, call_start(&self->c));
	for (int i = 0; i < 10; i++) {
		pthread_kill(self->c.thread, i % 2 ? SIGUSR2 : SIGWINCH);
		sleep_ms(1);
	}
	EXPECT_FALSE(call_done(&self->c));
	ASSERT_EQ(1, trigger(&self->q, 2));
	ASSERT_TRUE(call_join(&self->c));
	want_got(1 << 2);
}

/* As epoll_wait() does it, and poll() does not; no mask is against it. */
TEST_F(call, is_ended_by_being_stopped_and_continued)
{
	struct ukevent change = kq_user_change(KEVENT_OP_ADD, 50,
					       KEVENT_USER_COUNT, 0, 50);
	int status;
	pid_t pid;

	init_call(1);
	call_set_mask(&self->c, ~0ULL);
	call_set_deadline(&self->c, CLOCK_BOOTTIME,
			  clock_ns(CLOCK_BOOTTIME) + HOUR_NS);
	call_set_changes(&self->c, &change, 1);
	pid = fork_call(&self->c);
	ASSERT_LT(0, pid);
	status = stop_and_continue(_metadata, pid);
	ASSERT_TRUE(WIFEXITED(status));
	EXPECT_EQ(0, WEXITSTATUS(status));
	EXPECT_EQ(1, del(&self->q, 50));
}

/*
 * The least time to wait for all that is wanted
 */

TEST_F(call, min_wait_that_is_over_makes_one_event_enough)
{
	__s64 start = now_ns();

	ASSERT_EQ(1, trigger(&self->q, 0));
	ASSERT_EQ(1, trigger(&self->q, 1));
	init_call(5);
	self->c.opts.min_wait = 20 * NSEC_PER_MSEC;
	ASSERT_TRUE(call_run(&self->c));
	EXPECT_LE(20 * NSEC_PER_MSEC, now_ns() - start);
	/* Both of them, it is not the number that is wanted now. */
	want_got(1 << 0 | 1 << 1);
}

TEST_F(call, min_wait_without_events_ends_with_the_first)
{
	for (int min = 1; min <= 3; min += 2) {
		init_call(min);
		self->c.opts.min_wait = 1;
		ASSERT_EQ(0, call_start(&self->c));
		sleep_ms(MOMENT_MS);
		EXPECT_FALSE(call_done(&self->c));
		ASSERT_EQ(1, trigger(&self->q, 4));
		ASSERT_TRUE(call_join(&self->c));
		want_got(1 << 4);
	}
}

TEST_F(call, min_wait_is_not_waited_for_if_there_are_enough)
{
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, trigger(&self->q, i));
	init_call(3);
	self->c.opts.min_wait = HOUR_NS;
	ASSERT_TRUE(call_run(&self->c));
	want_got(1 << 0 | 1 << 1 | 1 << 2);
}

TEST_F(call, min_wait_ends_when_there_are_enough)
{
	init_call(2);
	self->c.opts.min_wait = HOUR_NS;
	ASSERT_EQ(0, call_start(&self->c));
	ASSERT_EQ(1, trigger(&self->q, 0));
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(call_done(&self->c));
	ASSERT_EQ(1, trigger(&self->q, 1));
	ASSERT_TRUE(call_join(&self->c));
	want_got(1 << 0 | 1 << 1);
}

TEST_F(call, min_wait_ends_with_the_timeout)
{
	__u64 waits[] = { 25 * NSEC_PER_MSEC, HOUR_NS, ~0ULL };

	for (size_t i = 0; i < ARRAY_SIZE(waits); i++) {
		for (int events = 0; events < 2; events++) {
			__s64 start;

			if (events)
				ASSERT_EQ(1, trigger(&self->q, 0));
			init_call(2);
			self->c.opts.min_wait = waits[i];
			self->c.timeout = ms_to_timespec(25);
			start = now_ns();
			ASSERT_TRUE(call_run(&self->c));
			EXPECT_LE(25 * NSEC_PER_MSEC, now_ns() - start);
			want_got(events);
		}
	}
}

TEST_F(call, min_wait_for_nothing_is_no_wait)
{
	init_call(0);
	self->c.opts.min_wait = HOUR_NS;
	self->c.forever = true;
	ASSERT_TRUE(call_run(&self->c));
	want_got(0);
	ASSERT_EQ(1, trigger(&self->q, 7));
	ASSERT_TRUE(call_run(&self->c));
	want_got(1 << 7);
}

TEST_F(call, min_wait_ends_before_a_deadline_of_any_clock)
{
	static const clockid_t clocks[] = {
		CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_TAI,
	};

	for (size_t i = 0; i < ARRAY_SIZE(clocks); i++) {
		__s64 start = now_ns();

		ASSERT_EQ(1, trigger(&self->q, 0));
		init_call(3);
		self->c.opts.min_wait = 10 * NSEC_PER_MSEC;
		call_set_deadline(&self->c, clocks[i],
				  clock_ns(clocks[i]) + HOUR_NS);
		ASSERT_TRUE(call_run(&self->c))
			TH_LOG("clock %d", clocks[i]);
		EXPECT_LE(10 * NSEC_PER_MSEC, now_ns() - start);
		want_got(1 << 0);

		/* The deadline is over before it begins. */
		ASSERT_EQ(1, trigger(&self->q, 0));
		self->c.opts.min_wait = HOUR_NS;
		call_set_deadline(&self->c, clocks[i], clock_ns(clocks[i]));
		ASSERT_TRUE(call_run(&self->c))
			TH_LOG("clock %d", clocks[i]);
		want_got(1 << 0);
	}
}

TEST_F(call, min_wait_ends_with_a_signal)
{
	init_call(3);
	self->c.opts.min_wait = HOUR_NS;
	call_set_mask(&self->c, self->blocked & ~sig_bit(SIGUSR1));
	ASSERT_EQ(0, call_start(&self->c));
	pthread_kill(self->c.thread, SIGUSR1);
	ASSERT_TRUE(call_join(&self->c));
	want_failed(-EINTR, 0);
	EXPECT_EQ(1, nr_caught(SIGUSR1));
}

TEST_F(call, min_wait_makes_one_level_source_enough)
{
	int fd = open_eventfd();
	__s64 start = now_ns();
	struct ukevent ev;

	ASSERT_EQ(1, kq_add_mode(&self->q, fd, EPOLLIN, KEVENT_LEVEL, 20));
	signal_eventfd(fd);
	init_call(4);
	self->c.opts.min_wait = 10 * NSEC_PER_MSEC;
	ASSERT_TRUE(call_run(&self->c));
	EXPECT_LE(10 * NSEC_PER_MSEC, now_ns() - start);
	EXPECT_EQ(1, self->c.ret);
	EXPECT_EQ(1, kq_collect(&self->q, BY_SYSCALL, &ev, 1));
	EXPECT_EQ(20, ev.user_data);
}

/*
 * The changes
 */

TEST_F(call, changes_are_applied_before_it_waits)
{
	int fd = open_eventfd();
	struct ukevent changes[2];

	signal_eventfd(fd);
	changes[0] = kq_mode_change(KEVENT_OP_ADD, fd, EPOLLIN, KEVENT_EDGE,
				    20);
	changes[1] = trigger_change(3);
	init_call(2);
	self->c.forever = true;
	call_set_changes(&self->c, changes, 2);
	ASSERT_TRUE(call_run(&self->c));
	want_got(1 << 20 | 1 << 3);
}

TEST_F(call, changes_are_applied_before_it_collects)
{
	struct ukevent change = del_change(0);

	ASSERT_EQ(1, trigger(&self->q, 0));
	ASSERT_EQ(1, trigger(&self->q, 1));
	init_call(1);
	call_set_changes(&self->c, &change, 1);
	ASSERT_TRUE(call_run(&self->c));
	want_got(1 << 1);
	EXPECT_EQ(-ENOENT, del(&self->q, 0));
}

TEST_F(call, changes_are_applied_if_it_does_not_wait)
{
	struct ukevent change = del_change(0);

	init_call(0);
	call_set_changes(&self->c, &change, 1);
	call_do(&self->c);
	want_got(0);
	EXPECT_EQ(-ENOENT, del(&self->q, 0));

	change = del_change(1);
	init_call(1);
	self->c.timeout = ms_to_timespec(0);
	call_set_changes(&self->c, &change, 1);
	call_do(&self->c);
	want_got(0);
	EXPECT_EQ(-ENOENT, del(&self->q, 1));
}

TEST_F(call, changes_that_fail_end_it)
{
	struct ukevent changes[3] = {
		trigger_change(1), del_change(99), trigger_change(2),
	};
	struct ukevent before[3];

	memcpy(before, changes, sizeof(before));
	ASSERT_EQ(1, trigger(&self->q, 0));
	init_call(1);
	call_set_changes(&self->c, changes, 3);
	call_do(&self->c);
	/* Nothing is collected; the change before the one that fails counts. */
	want_failed(-ENOENT, 2);
	EXPECT_EQ(0, memcmp(before, changes, sizeof(before)));

	/* The first */
	call_set_changes(&self->c, changes + 1, 2);
	call_do(&self->c);
	want_failed(-ENOENT, 2);

	call_set_changes(&self->c, changes, 1);
	call_do(&self->c);
	want_got(1 << 0 | 1 << 1);
}

TEST_F(call, changes_that_fail_with_results_do_not_end_it)
{
	struct ukevent changes[4] = {
		trigger_change(1), del_change(99), trigger_change(2),
		kq_change(KEVENT_SOURCE_USER, 99, 0, 0),
	};

	init_call(2);
	call_set_changes(&self->c, changes, 4);
	self->c.opts.change_flags = KEVENT_CTL_RESULTS;
	ASSERT_TRUE(call_run(&self->c));
	want_got(1 << 1 | 1 << 2);
	EXPECT_EQ(0, changes[0].result);
	EXPECT_EQ(-ENOENT, changes[1].result);
	EXPECT_EQ(0, changes[2].result);
	EXPECT_EQ(-EINVAL, changes[3].result);

	/* All of them; then it waits as if there were none. */
	init_call(1);
	call_set_changes(&self->c, &changes[1], 1);
	self->c.opts.change_flags = KEVENT_CTL_RESULTS;
	ASSERT_EQ(0, call_start(&self->c));
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(call_done(&self->c));
	ASSERT_EQ(1, trigger(&self->q, 5));
	ASSERT_TRUE(call_join(&self->c));
	want_got(1 << 5);
}

TEST_F(call, changes_are_applied_though_it_fails)
{
	struct ukevent change = del_change(0);

	/* A signal */
	init_call(1);
	call_set_mask(&self->c, self->blocked & ~sig_bit(SIGUSR1));
	call_set_changes(&self->c, &change, 1);
	raise(SIGUSR1);
	call_do(&self->c);
	want_failed(-EINTR, 0);
	EXPECT_EQ(-ENOENT, del(&self->q, 0));

	/* A buffer that is not there */
	if (!variant->collects)
		return;
	change = trigger_change(1);
	init_call(1);
	call_set_changes(&self->c, &change, 1);
	self->c.ret = kq_getevents_opts(&self->q, (void *)8, 1, 1, 0,
					&self->c.opts);
	self->c.blocked = blocked_signals();
	want_failed(-EFAULT, 1);
}

TEST_F(call, changes_wake_others_and_not_itself)
{
	struct ukevent change = kq_change(KEVENT_SOURCE_QUEUE, KEVENT_OP_WAKE,
					  0, 0);
	struct call other;
	__s64 start;

	call_init(&other, &self->q, 1, !variant->collects);
	ASSERT_EQ(0, call_start(&other));
	init_call(1);
	self->c.timeout = ms_to_timespec(20);
	call_set_changes(&self->c, &change, 1);
	/* Again, if the other was not there yet */
	for (int i = 0; i < PATIENCE_MS / 20; i++) {
		start = now_ns();
		call_do(&self->c);
		EXPECT_LE(20 * NSEC_PER_MSEC, now_ns() - start);
		want_got(0);
		if (call_done(&other))
			break;
	}
	ASSERT_TRUE(call_join(&other));
	EXPECT_EQ(0, other.ret);
}

TEST_F(call, changes_can_be_many)
{
	enum { CHANGES = 300 };
	struct ukevent *changes = calloc(CHANGES, sizeof(*changes));
	struct ukevent ev;

	ASSERT_NE(NULL, changes);
	for (int i = 0; i < CHANGES; i++)
		changes[i] = trigger_change(6);
	init_call(1);
	call_set_changes(&self->c, changes, CHANGES);
	call_do(&self->c);
	EXPECT_EQ(1, self->c.ret);
	if (variant->collects) {
		EXPECT_EQ(CHANGES, self->c.evs[0].events);
	} else {
		ASSERT_EQ(1, kq_collect(&self->q, BY_RING, &ev, 1));
		EXPECT_EQ(CHANGES, ev.events);
	}
	free(changes);
}

TEST_F(call, changes_can_start_a_timer_and_grow_the_ring)
{
	__s64 start = now_ns();
	struct ukevent changes[2], ev;

	changes[0] = kq_change(KEVENT_SOURCE_QUEUE, KEVENT_OP_GROW, 0, 0);
	changes[0].data = 2 * SLOTS;
	changes[1] = kq_timer_change(KEVENT_OP_ADD, 40, CLOCK_MONOTONIC,
				     5 * NSEC_PER_MSEC, 0, 0, 21);
	init_call(1);
	call_set_changes(&self->c, changes, 2);
	ASSERT_TRUE(call_run(&self->c));
	EXPECT_LE(5 * NSEC_PER_MSEC, now_ns() - start);
	EXPECT_EQ(1, self->c.ret);
	EXPECT_EQ(2 * SLOTS, self->q.map.ring->slots);
	if (variant->collects) {
		EXPECT_EQ(21, self->c.evs[0].user_data);
	} else {
		ASSERT_EQ(1, kq_collect(&self->q, BY_RING, &ev, 1));
		EXPECT_EQ(21, ev.user_data);
	}
}

/*
 * A loop over pipes that gives back in each call what it has worked off, and
 * needs no other call of the queue.
 */

#define TURNS	150
#define PIPES	4

TEST_F(call, changes_make_one_call_of_a_turn)
{
	struct ukevent changes[SLOTS], ev;
	unsigned int nr_changes = PIPES;
	int pipes[PIPES][2];
	int turns = 0;

	for (int i = 0; i < PIPES; i++) {
		ASSERT_EQ(0, pipe2(pipes[i], O_CLOEXEC | O_NONBLOCK));
		/* To begin with */
		changes[i] = kq_mode_change(KEVENT_OP_ADD, pipes[i][0], EPOLLIN,
					    KEVENT_EDGE | KEVENT_DISPATCH, i);
	}
	ASSERT_EQ(1, write(pipes[0][1], "x", 1));
	while (turns < TURNS) {
		int nr;

		init_call(1);
		call_set_changes(&self->c, changes, nr_changes);
		ASSERT_TRUE(call_run(&self->c))
			TH_LOG("turn %d", turns);
		nr = self->c.ret;
		ASSERT_LT(0, nr)
			TH_LOG("turn %d", turns);
		nr_changes = 0;
		for (int i = 0; i < nr; i++) {
			char c;

			if (variant->collects)
				ev = self->c.evs[i];
			else
				ASSERT_EQ(1, kq_collect(&self->q, BY_RING, &ev,
							1));
			/* Until it is given back, it is silent. */
			EXPECT_EQ(turns % PIPES, ev.user_data)
				TH_LOG("turn %d", turns);
			ASSERT_EQ(1, read(ev.ident, &c, 1));
			changes[nr_changes++] = kq_change(KEVENT_SOURCE_FD,
							  KEVENT_OP_ENABLE,
							  ev.ident, 0);
			turns++;
			ASSERT_EQ(1, write(pipes[turns % PIPES][1], "x", 1));
		}
	}
}

/*
 * Where options and changes lie
 */

TEST_F(call, opts_that_end_in_a_hole_change_nothing)
{
	size_t page = sysconf(_SC_PAGESIZE);
	unsigned char *mem = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ukevent change = trigger_change(1);
	struct kevent_getopts opts = kq_opts(0);

	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, mprotect(mem + page, page, PROT_NONE));
	ASSERT_EQ(1, trigger(&self->q, 0));
	opts.changes = (uintptr_t)&change;
	opts.nr_changes = 1;
	init_call(1);
	for (size_t there = 0; there <= sizeof(opts); there += 4) {
		unsigned char *at = mem + page - there;

		memcpy(at, &opts, there);
		self->c.ret = kq_getevents_opts(&self->q, variant->collects ?
						self->c.evs : NULL, 1,
						self->c.max, PATIENCE_MS,
						(struct kevent_getopts *)at);
		self->c.blocked = blocked_signals();
		if (there < sizeof(opts))
			want_failed(-EFAULT, 1);
	}
	/* They were good otherwise. */
	if (variant->collects)
		want_got(1 << 0 | 1 << 1);
	else
		want_failed(1, 2);
}

TEST_F(call, opts_and_changes_need_not_be_writable)
{
	size_t page = sysconf(_SC_PAGESIZE);
	struct {
		struct kevent_getopts opts;
		struct ukevent change;
	} *mem;

	mem = mmap(NULL, page, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, mem);
	mem->opts = kq_opts(0);
	mem->opts.changes = (uintptr_t)&mem->change;
	mem->opts.nr_changes = 1;
	mem->change = trigger_change(1);
	ASSERT_EQ(0, mprotect(mem, page, PROT_READ));
	init_call(1);
	self->c.ret = kq_getevents_opts(&self->q, variant->collects ?
					self->c.evs : NULL, 1, self->c.max,
					PATIENCE_MS, &mem->opts);
	self->c.blocked = blocked_signals();
	want_got(1 << 1);

	/* A result must be writable, or nothing is done. */
	init_call(1);
	call_set_changes(&self->c, &mem->change, 1);
	self->c.opts.change_flags = KEVENT_CTL_RESULTS;
	call_do(&self->c);
	want_failed(-EFAULT, 0);
}

/*
 * Deadlines
 */

FIXTURE(deadline) {
	struct kq q;
	struct call c;
	__s64 ahead;		/* of the realtime clock, before all this */
	bool shifted;		/* the clock was set, or is about to be */
	int old_tai;		/* the offset of TAI, before all this */
	bool moved_tai;		/* it was changed, or is about to be */
};

FIXTURE_VARIANT(deadline) {
	clockid_t clock;
	bool can_be_set;
};

FIXTURE_VARIANT_ADD(deadline, of_monotonic) { CLOCK_MONOTONIC, false };
FIXTURE_VARIANT_ADD(deadline, of_realtime) { CLOCK_REALTIME, true };
FIXTURE_VARIANT_ADD(deadline, of_boottime) { CLOCK_BOOTTIME, false };
FIXTURE_VARIANT_ADD(deadline, of_tai) { CLOCK_TAI, true };

static int set_tai(int offset)
{
	struct timex tx = { .modes = ADJ_TAI, .constant = offset };

	return adjtimex(&tx) < 0 ? -errno : 0;
}

/* Sets the realtime clock, and with it that of TAI, to @by from what is right. */
static int shift_clock(__s64 ahead, __s64 by)
{
	__s64 ns = now_ns() + ahead + by;
	struct timespec ts = {
		.tv_sec = ns / NSEC_PER_SEC,
		.tv_nsec = ns % NSEC_PER_SEC,
	};

	return clock_settime(CLOCK_REALTIME, &ts) ? -errno : 0;
}

FIXTURE_SETUP(deadline)
{
	struct timex tx = { };

	if (!setup_queue(_metadata, &self->q, 0))
		return;
	self->ahead = clock_ns(CLOCK_REALTIME) - now_ns();
	/* So that no two clocks agree */
	if (variant->clock == CLOCK_TAI && adjtimex(&tx) >= 0) {
		self->old_tai = tx.tai;
		self->moved_tai = true;
		set_tai(tx.tai + 600);
	}
}

/*
 * In the parent, so that the clocks are right even after a crash.  The queue is
 * none of its own.
 */
FIXTURE_TEARDOWN_PARENT(deadline)
{
	if (self->shifted)
		shift_clock(self->ahead, 0);
	if (self->moved_tai)
		set_tai(self->old_tai);
}

#define init_deadline(min, collects, end) do {				\
	call_init(&self->c, &self->q, min, collects);			\
	call_set_deadline(&self->c, variant->clock, end);		\
} while (0)
#define want_got_in_time(events)					\
	__want_got(_metadata, __LINE__, &self->c, &self->q,		\
		   blocked_signals(), events)

TEST_F(deadline, is_never_early)
{
	static const __s64 waits[] = {
		NSEC_PER_MSEC / 10, NSEC_PER_MSEC, 3 * NSEC_PER_MSEC,
		10 * NSEC_PER_MSEC,
	};

	for (int i = 0; i < 32; i++) {
		__s64 end = clock_ns(variant->clock) + waits[i / 2 % 4];

		init_deadline(1, i % 2, end);
		ASSERT_TRUE(call_run(&self->c));
		EXPECT_LE(end, clock_ns(variant->clock));
		want_got_in_time(0);
	}
}

TEST_F(deadline, is_never_early_for_who_has_too_little)
{
	for (int i = 0; i < 4; i++) {
		__s64 end = clock_ns(variant->clock) + 5 * NSEC_PER_MSEC;

		ASSERT_EQ(1, trigger(&self->q, i));
		init_deadline(3, i % 2, end);
		ASSERT_TRUE(call_run(&self->c));
		EXPECT_LE(end, clock_ns(variant->clock));
		want_got_in_time(1 << i);
	}
}

TEST_F(deadline, that_is_over_ends_it_at_once)
{
	for (int i = 0; i < 10; i++) {
		__s64 now = clock_ns(variant->clock);
		__s64 ends[] = { 0, 1, now / 2, now - 1, now };

		init_deadline(1, i % 2, ends[i / 2]);
		ASSERT_TRUE(call_run(&self->c))
			TH_LOG("%lld at %lld", ends[i / 2], now);
		want_got_in_time(0);

		/* It gives what there is. */
		ASSERT_EQ(1, trigger(&self->q, 0));
		ASSERT_EQ(1, trigger(&self->q, 1));
		init_deadline(3, i % 2, ends[i / 2]);
		ASSERT_TRUE(call_run(&self->c));
		want_got_in_time(1 << 0 | 1 << 1);
	}
}

TEST_F(deadline, to_come_does_not_hold_up_an_event)
{
	__s64 now = clock_ns(variant->clock);
	struct __kernel_timespec ends[] = {
		ns_to_timespec(now + HOUR_NS),
		ns_to_timespec(LLONG_MAX),
		{ .tv_sec = LLONG_MAX / NSEC_PER_SEC + 1 },
		{ .tv_sec = LLONG_MAX },
	};

	for (size_t i = 0; i < 2 * ARRAY_SIZE(ends); i++) {
		init_deadline(1, i % 2, 0);
		self->c.timeout = ends[i / 2];
		ASSERT_EQ(0, call_start(&self->c));
		sleep_ms(MOMENT_MS / 5);
		EXPECT_FALSE(call_done(&self->c));
		ASSERT_EQ(1, trigger(&self->q, 0));
		ASSERT_TRUE(call_join(&self->c));
		want_got_in_time(1 << 0);
	}
}

TEST_F(deadline, is_of_the_clock_as_it_is_set)
{
	for (int i = 0; i < 2; i++) {
		init_deadline(1, i, clock_ns(variant->clock) + HOUR_NS);
		ASSERT_EQ(0, call_start(&self->c));
		self->shifted = true;
		if (shift_clock(self->ahead, 2 * HOUR_NS)) {
			ASSERT_EQ(1, trigger(&self->q, 0));
			ASSERT_TRUE(call_join(&self->c));
			SKIP(return, "cannot set the clock");
		}
		if (!variant->can_be_set) {
			sleep_ms(MOMENT_MS);
			EXPECT_FALSE(call_done(&self->c));
			ASSERT_EQ(1, trigger(&self->q, 0));
		}
		ASSERT_TRUE(call_join(&self->c));
		want_got_in_time(!variant->can_be_set);
		ASSERT_EQ(0, shift_clock(self->ahead, 0));
	}
}

/* Two clocks are ahead, for those who were born into the namespace. */
TEST_F(deadline, is_of_the_clock_as_the_time_namespace_has_it)
{
	pid_t pid;

	if (unshare(CLONE_NEWTIME))
		SKIP(return, "cannot make a time namespace");
	ASSERT_TRUE(shift_time_namespace());
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (int i = 0; i < 4; i++) {
			__s64 end = clock_ns(variant->clock) +
				    5 * NSEC_PER_MSEC;

			init_deadline(1, i % 2, end);
			if (call_do(&self->c) ||
			    clock_ns(variant->clock) < end)
				_exit(1);
		}
		_exit(0);
	}
	EXPECT_EQ(0, reap_soon(pid));
}

/*
 * Many who wait, for different numbers of events
 */

FIXTURE(many) {
	struct kq q;
	struct call c[6];
};

FIXTURE_VARIANT(many) {
	__u32 init_flags;
};

FIXTURE_VARIANT_ADD(many, taking_turns) { 0 };
FIXTURE_VARIANT_ADD(many, last_one_first) { KEVENT_INIT_LIFO };

FIXTURE_SETUP(many)
{
	ASSERT_EQ(0, count_signals(SIGUSR1, 0));
	setup_queue(_metadata, &self->q, variant->init_flags);
}

FIXTURE_TEARDOWN(many)
{
	kq_close(&self->q);
}

/* Nothing is taken away, so each threshold is reached in turn. */
TEST_F(many, end_one_by_one_as_the_events_come)
{
	__u64 random = random_seed();
	struct ukevent evs[SLOTS];

	for (int lap = 0; lap < 5; lap++) {
		unsigned int left = (1U << ARRAY_SIZE(self->c)) - 1;

		/* In any order */
		while (left) {
			int i = next_random(&random) % ARRAY_SIZE(self->c);

			if (!(left & 1U << i))
				continue;
			left &= ~(1U << i);
			call_init(&self->c[i], &self->q, i + 1, false);
			ASSERT_EQ(0, call_start(&self->c[i]));
		}
		for (size_t i = 0; i < ARRAY_SIZE(self->c); i++) {
			ASSERT_EQ(1, trigger(&self->q, i));
			ASSERT_TRUE(call_join(&self->c[i]))
				TH_LOG("lap %d, for %zu", lap, i + 1);
			EXPECT_EQ(i + 1, self->c[i].ret);
			for (size_t k = i + 1; k < ARRAY_SIZE(self->c); k++)
				EXPECT_FALSE(call_done(&self->c[k]));
		}
		EXPECT_EQ(ARRAY_SIZE(self->c),
			  kq_collect(&self->q, BY_RING, evs, SLOTS));
	}
}

/*
 * Threads that collect all the time.  Whoever sleeps does so because there are
 * fewer events than it wants.
 */

#define COLLECTORS	4
#define BURSTS		80

struct collector {
	struct collectors *all;
	pthread_t thread;
	__u64 random;
	unsigned int want;	/* how many it waits for; zero: it does not */
};

struct collectors {
	struct kq q;
	struct collector c[COLLECTORS];
	int stop;
	int left;
	int wrong;
	unsigned int calls;
	__aligned_u64 sum;
};

static void *collector_fn(void *arg)
{
	struct collector *c = arg;
	struct collectors *all = c->all;
	struct ukevent evs[SLOTS];

	while (!__atomic_load_n(&all->stop, __ATOMIC_ACQUIRE)) {
		unsigned int min = 1 + next_random(&c->random) % 5;
		unsigned int max = min + next_random(&c->random) % 3;
		int ret;

		__atomic_store_n(&c->want, min, __ATOMIC_RELEASE);
		ret = sys_kevent_getevents(all->q.fd, evs, min, max, NULL,
					   NULL);
		__atomic_store_n(&c->want, 0, __ATOMIC_RELEASE);
		__atomic_fetch_add(&all->calls, 1, __ATOMIC_RELEASE);
		/* Unless it is told to return, it has what it wants. */
		if (ret > (int)max)
			__atomic_fetch_add(&all->wrong, 1, __ATOMIC_RELAXED);
		if (ret < (int)min &&
		    !__atomic_load_n(&all->stop, __ATOMIC_ACQUIRE))
			__atomic_fetch_add(&all->wrong, 1, __ATOMIC_RELAXED);
		for (int i = 0; i < ret; i++)
			__atomic_fetch_add(&all->sum, evs[i].events,
					   __ATOMIC_RELAXED);
	}
	__atomic_fetch_sub(&all->left, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* The least number that anybody waits for; zero if not all do */
static unsigned int least_wanted(struct collectors *all)
{
	unsigned int least = SLOTS + 1;

	for (int i = 0; i < COLLECTORS; i++) {
		unsigned int want = __atomic_load_n(&all->c[i].want,
						    __ATOMIC_ACQUIRE);

		least = want < least ? want : least;
	}
	return least;
}

static bool all_sleep_rightly(struct collectors *all)
{
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		unsigned int calls = __atomic_load_n(&all->calls,
						     __ATOMIC_ACQUIRE);
		unsigned int least = least_wanted(all);

		if (unclaimed(&all->q) < least &&
		    calls == __atomic_load_n(&all->calls, __ATOMIC_ACQUIRE))
			return true;
		if (ms < 20)
			sched_yield();
		else
			sleep_ms(1);
	}
	return false;
}

TEST_F_TIMEOUT(many, do_not_sleep_while_there_is_enough, 60)
{
	struct collectors all = { .q = self->q, .left = COLLECTORS };
	__u64 random = random_seed();
	struct ukevent ev;
	__u64 sum = 0;

	for (int i = 0; i < COLLECTORS; i++) {
		all.c[i].all = &all;
		all.c[i].random = random + i;
		ASSERT_EQ(0, pthread_create(&all.c[i].thread, NULL,
					    collector_fn, &all.c[i]));
	}
	for (int i = 0; i < BURSTS; i++) {
		int nr = 1 + next_random(&random) % 8;

		for (int k = 0; k < nr; k++, sum++)
			ASSERT_EQ(1, trigger(&self->q,
					     next_random(&random) % NR));
		ASSERT_TRUE(all_sleep_rightly(&all))
			TH_LOG("burst %d: %u events, for %u", i,
			       unclaimed(&self->q), least_wanted(&all));
	}
	__atomic_store_n(&all.stop, 1, __ATOMIC_RELEASE);
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		if (!__atomic_load_n(&all.left, __ATOMIC_ACQUIRE))
			break;
		kq_wake(&self->q);
		sleep_ms(1);
	}
	ASSERT_EQ(0, all.left);
	for (int i = 0; i < COLLECTORS; i++)
		pthread_join(all.c[i].thread, NULL);
	EXPECT_EQ(0, all.wrong);
	while (kq_collect(&self->q, BY_SYSCALL, &ev, 1))
		all.sum += ev.events;
	EXPECT_EQ(sum, all.sum);
}

/*
 * Two who wait for as long as it takes, and a third who waits no more just when
 * it is woken.  What it leaves must wake the others.
 */

enum fickle {
	TOO_LATE,		/* its time is over */
	INTERRUPTED,
	KILLED,
};

#define STEADY 2

static void start_fickle(struct __test_metadata *_metadata, struct call *c,
			 const struct kq *q, enum fickle how, __u64 rnd,
			 pid_t *pid)
{
	/* Who waits only has to claim what it was told of. */
	call_init(c, q, 1 + rnd % 3, true);
	c->max = c->min + (rnd >> 4) % 2;
	switch (how) {
	case TOO_LATE:
		if (rnd >> 8 & 1)
			c->opts.min_wait = (rnd >> 16) % 500000;
		call_set_deadline(c, CLOCK_MONOTONIC,
				  now_ns() + (rnd >> 32) % 2000000);
		break;
	case INTERRUPTED:
		break;
	case KILLED:
		*pid = fork_call(c);
		ASSERT_LT(0, *pid);
		wait_until_process_asleep(*pid);
		return;
	}
	ASSERT_EQ(0, call_start(c));
}

/* Whoever has not returned wants more than there is. */
static bool steady_sleep_rightly(struct call *steady, const struct kq *q)
{
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		bool rightly = true;

		for (int i = 0; i < STEADY; i++)
			rightly &= call_done(&steady[i]) ||
				   unclaimed(q) < steady[i].min;
		if (rightly)
			return true;
		sleep_ms(1);
	}
	return false;
}

static void pass_on(struct __test_metadata *_metadata, struct kq *q,
		    struct call *calls, enum fickle how, int rounds)
{
	struct call *steady = calls, *fickle = &calls[STEADY];
	__u64 random = random_seed();
	struct ukevent ev;

	for (int round = 0; round < rounds; round++) {
		__u64 rnd = next_random(&random);
		int place = rnd % (STEADY + 1);
		int events = 1 + (rnd >> 8) % 4;
		int when = (rnd >> 16) % (events + 1);
		pid_t pid = 0;

		for (int i = 0; i <= STEADY; i++) {
			if (i == place)
				start_fickle(_metadata, fickle, q, how,
					     next_random(&random), &pid);
			if (i == STEADY)
				break;
			call_init(&steady[i], q, 1 + (rnd >> (24 + 4 * i)) % 3,
				  true);
			steady[i].max = steady[i].min;
			ASSERT_EQ(0, call_start(&steady[i]));
		}
		for (int i = 0; i <= events; i++) {
			if (i == when && how == INTERRUPTED)
				pthread_kill(fickle->thread, SIGUSR1);
			if (i == when && how == KILLED)
				kill(pid, SIGKILL);
			if (i < events)
				ASSERT_EQ(1, trigger(q, i));
		}
		switch (how) {
		case TOO_LATE:
			ASSERT_TRUE(call_join(fickle));
			break;
		case INTERRUPTED:
			ASSERT_TRUE(call_join_by_signal(fickle, SIGUSR1));
			break;
		case KILLED:
			reap(pid);
			break;
		}
		ASSERT_TRUE(steady_sleep_rightly(steady, q))
			TH_LOG("round %d: %u events, for %u and %u", round,
			       unclaimed(q), steady[0].min, steady[1].min);

		/* Let them go, and begin anew. */
		for (int ms = 0; ms < PATIENCE_MS; ms++) {
			if (call_done(&steady[0]) && call_done(&steady[1]))
				break;
			for (int i = 0; i < NR; i++)
				ASSERT_EQ(1, trigger(q, i));
			sleep_ms(1);
		}
		for (int i = 0; i < STEADY; i++) {
			ASSERT_TRUE(call_join(&steady[i]));
			EXPECT_EQ(steady[i].min, steady[i].ret);
		}
		while (kq_collect(q, BY_SYSCALL, &ev, 1))
			;
	}
}

TEST_F_TIMEOUT(many, are_woken_by_what_one_leaves_whose_time_is_over, 60)
{
	pass_on(_metadata, &self->q, self->c, TOO_LATE, 40);
}

TEST_F_TIMEOUT(many, are_woken_by_what_one_leaves_who_is_interrupted, 60)
{
	pass_on(_metadata, &self->q, self->c, INTERRUPTED, 40);
}

TEST_F_TIMEOUT(many, are_woken_by_what_one_leaves_who_is_killed, 60)
{
	pass_on(_metadata, &self->q, self->c, KILLED, 30);
}

TEST_HARNESS_MAIN
