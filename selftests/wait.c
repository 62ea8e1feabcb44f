// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: waiting, in kevent_getevents() and with the calls that wait for files.
 */
#include "kevent_util.h"

#include <sys/prctl.h>
#include <sys/select.h>

#define SLOTS 16
#define NR 12

/* Eventfds 0 to NR - 1 are registered; their number is the user data. */
FIXTURE(wait) {
	struct kq q;
	int efd[NR];
};

static void nothing(int sig __maybe_unused)
{
}

FIXTURE_SETUP(wait)
{
	struct sigaction sa = { .sa_handler = nothing };

	ASSERT_EQ(0, sigaction(SIGUSR1, &sa, NULL));
	sa.sa_flags = SA_RESTART;
	ASSERT_EQ(0, sigaction(SIGUSR2, &sa, NULL));
	if (!kq_setup(_metadata, &self->q, SLOTS))
		return;
	for (int i = 0; i < NR; i++) {
		self->efd[i] = open_eventfd();
		ASSERT_LE(0, self->efd[i]);
		ASSERT_EQ(1, kq_add(&self->q, self->efd[i], EPOLLIN, i));
	}
}

FIXTURE_TEARDOWN(wait)
{
	kq_close(&self->q);
}

static void __want(struct __test_metadata *_metadata, int line, struct kq *q,
		   const int *efd, int i)
{
	__want_event(_metadata, line, q, BY_RING, efd[i], EPOLLIN, EPOLLIN, i);
}

#define want(i) __want(_metadata, __LINE__, &self->q, self->efd, i)
#define want_empty() want_none(&self->q, BY_RING)

/*
 * What ends it
 */

TEST_F(wait, ends_with_an_event)
{
	struct waiter w = { };

	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 8));
	EXPECT_FALSE(waiter_done(&w));
	signal_eventfd(self->efd[3]);
	ASSERT_TRUE(waiter_join(&w));
	ASSERT_EQ(1, w.ret);
	EXPECT_EQ(3, w.evs[0].user_data);
	want_empty();
}

TEST_F(wait, without_timeout_ends_with_an_event)
{
	struct waiter w = { .forever = true };

	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 8));
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	signal_eventfd(self->efd[3]);
	ASSERT_TRUE(waiter_join(&w));
	ASSERT_EQ(1, w.ret);
	EXPECT_EQ(3, w.evs[0].user_data);
}

TEST_F(wait, ends_with_the_readiness_that_a_new_registration_finds)
{
	struct waiter w = { };
	int fd = open_eventfd();

	signal_eventfd(fd);
	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 8));
	ASSERT_EQ(1, kq_add(&self->q, fd, EPOLLIN, 99));
	ASSERT_TRUE(waiter_join(&w));
	ASSERT_EQ(1, w.ret);
	EXPECT_EQ(99, w.evs[0].user_data);
}

/*
 * Signals are sent until they have hit the call: the thread may not have been
 * there yet.
 */
static bool join_by_signal(struct waiter *w, int sig)
{
	for (int ms = 0; ms < PATIENCE_MS && !waiter_done(w); ms++) {
		pthread_kill(w->thread, sig);
		sleep_ms(1);
	}
	return waiter_join(w);
}

TEST_F(wait, ends_with_a_signal)
{
	struct waiter w = { .forever = true };

	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 8));
	ASSERT_TRUE(join_by_signal(&w, SIGUSR1));
	EXPECT_EQ(-EINTR, w.ret);
}

/* As epoll_wait() and poll() do it */
TEST_F(wait, ends_with_a_signal_that_restarts_calls)
{
	struct waiter w = { };

	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 8));
	ASSERT_TRUE(join_by_signal(&w, SIGUSR2));
	EXPECT_EQ(-EINTR, w.ret);
}

/* A process that waits for one event: zero if a signal ended that */
static pid_t fork_waiter(const struct kq *q)
{
	pid_t pid = fork();

	if (!pid) {
		struct ukevent ev;
		int ret;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ret = kq_getevents(q, &ev, 1, 1, 4 * PATIENCE_MS);
		_exit(ret == -EINTR ? 0 : ret == 1 ? 1 : 2);
	}
	return pid;
}

/* As epoll_wait() does it, and poll() does not */
TEST_F(wait, ends_with_being_stopped_and_continued)
{
	pid_t pid = fork_waiter(&self->q);
	int status;

	ASSERT_LT(0, pid);
	status = stop_and_continue(_metadata, pid);
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(0, WEXITSTATUS(status));
}

TEST_F(wait, that_a_signal_ends_gives_what_there_is)
{
	struct waiter w = { };

	signal_eventfd(self->efd[5]);
	ASSERT_EQ(0, waiter_start(&w, &self->q, 2, 8));
	ASSERT_TRUE(join_by_signal(&w, SIGUSR1));
	ASSERT_EQ(1, w.ret);
	EXPECT_EQ(5, w.evs[0].user_data);
	want_empty();
}

TEST_F(wait, ends_with_the_timeout)
{
	struct ukevent ev;
	__s64 start = now_ns();

	EXPECT_EQ(0, kq_getevents(&self->q, &ev, 1, 1, MOMENT_MS));
	EXPECT_LE(MOMENT_MS * NSEC_PER_MSEC, now_ns() - start);

	start = now_ns();
	EXPECT_EQ(0, kq_getevents(&self->q, NULL, 1, 0, MOMENT_MS));
	EXPECT_LE(MOMENT_MS * NSEC_PER_MSEC, now_ns() - start);
}

TEST_F(wait, that_the_timeout_ends_gives_what_there_is)
{
	struct ukevent evs[4];
	__s64 start = now_ns();

	signal_eventfd(self->efd[5]);
	EXPECT_EQ(1, kq_getevents(&self->q, NULL, 2, 0, MOMENT_MS));
	EXPECT_LE(MOMENT_MS * NSEC_PER_MSEC, now_ns() - start);

	start = now_ns();
	ASSERT_EQ(1, kq_getevents(&self->q, evs, 2, 4, MOMENT_MS));
	EXPECT_LE(MOMENT_MS * NSEC_PER_MSEC, now_ns() - start);
	EXPECT_EQ(5, evs[0].user_data);
	want_empty();
}

/* These would hang if they waited. */
TEST_F(wait, for_nothing_ends_at_once)
{
	struct __kernel_timespec zero = { };
	struct ukevent evs[4];
	int kfd = self->q.fd;

	EXPECT_EQ(0, sys_kevent_getevents(kfd, evs, 0, 4, NULL, NULL));
	EXPECT_EQ(0, sys_kevent_getevents(kfd, NULL, 0, 0, NULL, NULL));
	EXPECT_EQ(0, sys_kevent_getevents(kfd, evs, 4, 4, &zero, NULL));
	EXPECT_EQ(0, sys_kevent_getevents(kfd, NULL, 4, 0, &zero, NULL));
	signal_eventfd(self->efd[5]);
	EXPECT_EQ(1, sys_kevent_getevents(kfd, evs, 0, 4, NULL, NULL));
	EXPECT_EQ(0, sys_kevent_getevents(kfd, evs, 0, 4, NULL, NULL));
}

TEST_F(wait, for_what_is_there_ends_at_once)
{
	struct ukevent evs[4];

	for (int i = 0; i < 3; i++)
		signal_eventfd(self->efd[i]);
	EXPECT_EQ(3, sys_kevent_getevents(self->q.fd, NULL, 3, 0, NULL, NULL));
	EXPECT_EQ(3, sys_kevent_getevents(self->q.fd, evs, 3, 4, NULL, NULL));
}

/*
 * How many events it takes
 */

TEST_F(wait, goes_on_until_there_are_enough)
{
	struct waiter w = { };

	ASSERT_EQ(0, waiter_start(&w, &self->q, 3, 8));
	signal_eventfd(self->efd[0]);
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	signal_eventfd(self->efd[1]);
	/* That is merged, it does not count. */
	signal_eventfd(self->efd[0]);
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	signal_eventfd(self->efd[2]);
	ASSERT_TRUE(waiter_join(&w));
	ASSERT_EQ(3, w.ret);
	for (int i = 0; i < 3; i++) {
		EXPECT_EQ(i, w.evs[i].user_data)
			TH_LOG("event %d", i);
	}
}

TEST_F(wait, does_not_count_what_was_deleted)
{
	struct waiter w = { };

	ASSERT_EQ(0, waiter_start(&w, &self->q, 2, 8));
	signal_eventfd(self->efd[0]);
	ASSERT_EQ(1, kq_del(&self->q, self->efd[0]));
	signal_eventfd(self->efd[1]);
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	signal_eventfd(self->efd[2]);
	ASSERT_TRUE(waiter_join(&w));
	ASSERT_EQ(2, w.ret);
	EXPECT_EQ(1, w.evs[0].user_data);
	EXPECT_EQ(2, w.evs[1].user_data);
}

TEST_F(wait, gives_more_than_the_least_if_it_is_there)
{
	struct ukevent evs[NR];

	for (int i = 0; i < 6; i++)
		signal_eventfd(self->efd[i]);
	EXPECT_EQ(4, kq_getevents(&self->q, evs, 1, 4, PATIENCE_MS));
	EXPECT_EQ(2, kq_getevents(&self->q, evs, 1, NR, PATIENCE_MS));
	want_empty();
}

/* It could come to that, if the ring grew. */
TEST_F(wait, for_more_than_the_ring_holds_goes_on)
{
	struct ukevent evs[2 * SLOTS];
	__s64 start = now_ns();

	for (int i = 0; i < NR; i++)
		signal_eventfd(self->efd[i]);
	EXPECT_EQ(NR, kq_getevents(&self->q, NULL, SLOTS + 1, 0, MOMENT_MS));
	EXPECT_LE(MOMENT_MS * NSEC_PER_MSEC, now_ns() - start);
	start = now_ns();
	EXPECT_EQ(NR, kq_getevents(&self->q, evs, SLOTS + 1, 2 * SLOTS,
				   MOMENT_MS));
	EXPECT_LE(MOMENT_MS * NSEC_PER_MSEC, now_ns() - start);
	want_empty();
}

TEST_F(wait, for_more_than_the_ring_held_ends_when_it_has_grown)
{
	struct waiter w = { .wait_only = true };

	ASSERT_EQ(0, waiter_start(&w, &self->q, SLOTS + 1, 0));
	for (int i = 0; i < NR; i++)
		signal_eventfd(self->efd[i]);
	ASSERT_EQ(1, kq_grow(&self->q, 2 * SLOTS));
	for (int i = NR; i < SLOTS + 1; i++) {
		EXPECT_FALSE(waiter_done(&w));
		ASSERT_EQ(1, kq_add_user(&self->q, i, KEVENT_USER_COUNT, 0, i));
		ASSERT_EQ(1, kq_trigger(&self->q, i, 1, 0));
	}
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(SLOTS + 1, w.ret);
	for (int i = 0; i < NR; i++)
		want(i);
	for (int i = NR; i < SLOTS + 1; i++)
		want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, i, 1, i);
	want_empty();
}

TEST_F(wait, without_collecting_leaves_the_event_in_the_ring)
{
	struct waiter w = { .wait_only = true };

	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 0));
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	signal_eventfd(self->efd[7]);
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(1, w.ret);
	want(7);
	want_empty();
}

TEST_F(wait, without_collecting_counts_no_further_than_asked)
{
	for (int i = 0; i < 4; i++)
		signal_eventfd(self->efd[i]);
	EXPECT_EQ(0, kq_getevents(&self->q, NULL, 0, 0, 0));
	EXPECT_EQ(2, kq_getevents(&self->q, NULL, 2, 0, 0));
	EXPECT_EQ(4, kq_getevents(&self->q, NULL, SLOTS, 0, 0));
	/* Neither what is claimed nor what is cancelled is there any more. */
	want(0);
	EXPECT_EQ(3, kq_getevents(&self->q, NULL, SLOTS, 0, 0));
	ASSERT_EQ(1, kq_del(&self->q, self->efd[2]));
	EXPECT_EQ(2, kq_getevents(&self->q, NULL, SLOTS, 0, 0));
	want(1);
	want(3);
	EXPECT_EQ(0, kq_getevents(&self->q, NULL, SLOTS, 0, 0));
}

/*
 * More than one who waits
 */

TEST_F(wait, for_less_is_not_held_up_by_one_for_more)
{
	for (int first = 0; first < 2; first++) {
		struct waiter more = { }, less = { };

		if (first) {
			ASSERT_EQ(0, waiter_start(&less, &self->q, 1, 1));
			ASSERT_EQ(0, waiter_start(&more, &self->q, 10, 10));
		} else {
			ASSERT_EQ(0, waiter_start(&more, &self->q, 10, 10));
			ASSERT_EQ(0, waiter_start(&less, &self->q, 1, 1));
		}
		signal_eventfd(self->efd[0]);
		ASSERT_TRUE(waiter_join(&less));
		EXPECT_EQ(1, less.ret);
		EXPECT_FALSE(waiter_done(&more));
		for (int i = 0; i < 10; i++)
			signal_eventfd(self->efd[i]);
		ASSERT_TRUE(waiter_join(&more));
		EXPECT_EQ(10, more.ret);
	}
}

TEST_F(wait, of_many_ends_with_an_event_each)
{
	struct waiter w[NR] = { };
	unsigned int seen = 0;

	for (int i = 0; i < NR; i++)
		ASSERT_EQ(0, waiter_start(&w[i], &self->q, 1, 1));
	for (int i = 0; i < NR; i++)
		signal_eventfd(self->efd[i]);
	for (int i = 0; i < NR; i++) {
		ASSERT_TRUE(waiter_join(&w[i]));
		ASSERT_EQ(1, w[i].ret);
		seen |= 1U << w[i].evs[0].user_data;
	}
	EXPECT_EQ((1U << NR) - 1, seen);
	want_empty();
}

/* Together they want all that there is, and none of them more than its share. */
TEST_F_TIMEOUT(wait, of_many_for_different_numbers_ends_with_each_its_own, 60)
{
	for (int lap = 0; lap < 20; lap++) {
		struct waiter w[4] = { };

		for (int i = 0; i < 4; i++) {
			int n = (i + lap) % 4 + 1;

			ASSERT_EQ(0, waiter_start(&w[i], &self->q, n, n));
		}
		for (int i = 0; i < 1 + 2 + 3 + 4; i++)
			signal_eventfd(self->efd[i]);
		for (int i = 0; i < 4; i++) {
			ASSERT_TRUE(waiter_join(&w[i]))
				TH_LOG("lap %d, for %u", lap, w[i].min);
			EXPECT_EQ(w[i].min, w[i].ret);
		}
		want_empty();
	}
}

/* A wake-up goes to one of them, who is to claim the event from the ring. */
TEST_F(wait, of_many_who_collect_nothing_ends_with_an_event_each)
{
	struct waiter w[3] = { };

	for (int i = 0; i < 3; i++) {
		w[i].wait_only = true;
		ASSERT_EQ(0, waiter_start(&w[i], &self->q, 1, 1));
	}
	for (int i = 0; i < 3; i++)
		signal_eventfd(self->efd[i]);
	for (int i = 0; i < 3; i++) {
		ASSERT_TRUE(waiter_join(&w[i]));
		EXPECT_GE(w[i].ret, 1);
	}
	for (int i = 0; i < 3; i++)
		want(i);
	want_empty();
}

/* Whoever is woken for an event that is gone goes on waiting. */
TEST_F(wait, goes_on_if_another_claims_the_event)
{
	struct waiter w = { };
	struct ukevent ev;

	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
	for (int i = 0; i < 200; i++) {
		signal_eventfd(self->efd[i % NR]);
		if (kq_collect(&self->q, BY_RING, &ev, 1))
			continue;
		ASSERT_TRUE(waiter_join(&w));
		EXPECT_EQ(1, w.ret);
		ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
	}
	signal_eventfd(self->efd[0]);
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(1, w.ret);
}

/* A wake-up that goes to who cannot use it must go on to the other. */
TEST_F_TIMEOUT(wait, wake_up_is_passed_on_by_who_is_interrupted, 60)
{
	for (int i = 0; i < 150; i++) {
		struct waiter a = { }, b = { };
		struct waiter *first = i % 2 ? &a : &b;
		struct waiter *second = i % 2 ? &b : &a;
		__s64 end;

		ASSERT_EQ(0, waiter_start(first, &self->q, 1, 1));
		ASSERT_EQ(0, waiter_start(second, &self->q, 1, 1));
		if (i % 4 < 2)
			pthread_kill(a.thread, SIGUSR1);
		signal_eventfd(self->efd[0]);
		if (i % 4 >= 2)
			pthread_kill(a.thread, SIGUSR1);

		end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
		while (!waiter_done(&a) && !waiter_done(&b)) {
			ASSERT_LT(now_ns(), end)
				TH_LOG("nobody was woken in turn %d", i);
			sched_yield();
		}
		/* Usually it has ended by now: by the event or the signal. */
		ASSERT_TRUE(join_by_signal(&a, SIGUSR1));
		ASSERT_TRUE(a.ret == 1 || a.ret == -EINTR)
			TH_LOG("returned %d", a.ret);
		if (a.ret == 1)
			signal_eventfd(self->efd[1]);
		ASSERT_TRUE(waiter_join(&b))
			TH_LOG("wake-up lost in turn %d", i);
		ASSERT_EQ(1, b.ret);
		want_empty();
	}
}

static int poll_now(const struct kq *q);

/*
 * Somebody waited for an event beside @w, and is no more.  If the event is still
 * there, it must wake @w; if not, it was the other's or is that of @w.
 */
static void want_passed_on(struct __test_metadata *_metadata, struct kq *q,
			   int other_fd, struct waiter *w, int turn)
{
	struct ukevent ev;

	if (!poll_now(q))
		signal_eventfd(other_fd);
	ASSERT_TRUE(waiter_join(w))
		TH_LOG("wake-up lost in turn %d", turn);
	EXPECT_EQ(1, w->ret);
	while (kq_getevents(q, &ev, 0, 1, 0) == 1)
		;
}

TEST_F_TIMEOUT(wait, wake_up_is_passed_on_by_who_is_killed, 60)
{
	for (int i = 0; i < 40; i++) {
		struct waiter w = { };
		pid_t pid = 0;

		if (i % 2) {
			pid = fork_waiter(&self->q);
			wait_until_process_asleep(pid);
		}
		ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
		if (!pid) {
			pid = fork_waiter(&self->q);
			wait_until_process_asleep(pid);
		}
		ASSERT_LT(0, pid);
		if (i % 4 < 2)
			kill(pid, SIGKILL);
		signal_eventfd(self->efd[0]);
		if (i % 4 >= 2)
			kill(pid, SIGKILL);
		reap(pid);
		want_passed_on(_metadata, &self->q, self->efd[1], &w, i);
	}
}

static void *wait_to_be_cancelled(void *arg)
{
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	return waiter_fn(arg);
}

TEST_F_TIMEOUT(wait, wake_up_is_passed_on_by_who_is_cancelled, 60)
{
	for (int i = 0; i < 80; i++) {
		struct waiter w = { }, c = { .q = &self->q, .min = 1, .max = 1 };

		if (i % 2)
			ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
		ASSERT_EQ(0, pthread_create(&c.thread, NULL,
					    wait_to_be_cancelled, &c));
		wait_until_asleep(&c.tid, &c.done);
		if (!(i % 2))
			ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
		if (i % 4 < 2)
			pthread_cancel(c.thread);
		signal_eventfd(self->efd[0]);
		if (i % 4 >= 2)
			pthread_cancel(c.thread);
		pthread_join(c.thread, NULL);
		want_passed_on(_metadata, &self->q, self->efd[1], &w, i);
	}
}

TEST_F(wait, wake_up_is_passed_on_by_who_has_no_buffer)
{
	struct waiter good = { };
	int ret;

	ASSERT_EQ(0, waiter_start(&good, &self->q, 1, 1));
	signal_eventfd(self->efd[0]);
	ret = kq_getevents(&self->q, (struct ukevent *)8, 1, 1, MOMENT_MS);
	EXPECT_TRUE(ret == -EFAULT || ret == 0)
		TH_LOG("returned %d", ret);
	ASSERT_TRUE(waiter_join(&good));
	EXPECT_EQ(1, good.ret);
}

static void *wait_without_buffer(void *arg)
{
	struct waiter *w = arg;

	__atomic_store_n(&w->tid, syscall(__NR_gettid), __ATOMIC_RELEASE);
	w->ret = kq_getevents(w->q, (struct ukevent *)8, 1, 1, PATIENCE_MS / 8);
	__atomic_store_n(&w->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

TEST_F(wait, wake_up_is_passed_on_by_who_waited_first_and_has_no_buffer)
{
	struct waiter bad = { .q = &self->q }, good = { };

	ASSERT_EQ(0, pthread_create(&bad.thread, NULL, wait_without_buffer,
				    &bad));
	wait_until_asleep(&bad.tid, &bad.done);
	ASSERT_EQ(0, waiter_start(&good, &self->q, 1, 1));
	signal_eventfd(self->efd[0]);
	ASSERT_TRUE(waiter_join(&good));
	EXPECT_EQ(1, good.ret);
	ASSERT_TRUE(waiter_join(&bad));
	EXPECT_TRUE(bad.ret == -EFAULT || bad.ret == 0)
		TH_LOG("returned %d", bad.ret);
}

/* It is up to the kernel when the file is gone, not whether it is sane. */
TEST_F(wait, outlives_the_descriptor_of_the_queue)
{
	struct waiter w = { };

	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
	ASSERT_EQ(0, close(self->q.fd));
	self->q.fd = -1;
	signal_eventfd(self->efd[0]);
	ASSERT_TRUE(waiter_join(&w));
	/* EBADF if it came too late */
	EXPECT_TRUE(w.ret == 1 || w.ret == -EBADF)
		TH_LOG("returned %d", w.ret);
}

TEST_F(wait, outlives_the_ring_mapping)
{
	struct waiter w = { };

	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
	kq_unmap(&self->q);
	signal_eventfd(self->efd[0]);
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(1, w.ret);
}

/*
 * Many who wait for this and that, and are interrupted: nobody sleeps while
 * there is what he waits for.
 */

#define STORM_TRIGGERS	1000
#define STORM_THREADS	4
#define STORM_EVENTS	8

struct storm {
	struct kq q;
	int stop;
	int left;		/* threads that go on */
	int wrong;
	__aligned_u64 sum;	/* of all values that were collected */
};

struct storm_thread {
	struct storm *st;
	pthread_t thread;
	__u64 random;
	bool modest;		/* one event is always enough */
};

static void *storm_collect(void *arg)
{
	struct storm_thread *t = arg;
	struct storm *st = t->st;

	while (!__atomic_load_n(&st->stop, __ATOMIC_ACQUIRE)) {
		unsigned int min = t->modest ? 1 :
				   1 + next_random(&t->random) % 3;
		unsigned int max = min + next_random(&t->random) % 3;
		struct ukevent evs[8];
		int ret = kq_getevents(&st->q, evs, min, max, PATIENCE_MS);

		if ((ret < 0 && ret != -EINTR) || ret > (int)max)
			__atomic_fetch_add(&st->wrong, 1, __ATOMIC_RELAXED);
		for (int i = 0; i < ret; i++)
			__atomic_fetch_add(&st->sum, evs[i].events,
					   __ATOMIC_RELEASE);
	}
	__atomic_fetch_sub(&st->left, 1, __ATOMIC_RELEASE);
	return NULL;
}

/*
 * Until all that was triggered is collected.  Who wants several events may keep
 * some until there are enough: if the queue is empty, he is told to return.
 */
static bool storm_calms_down(struct storm *st, __u64 sum)
{
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		if (__atomic_load_n(&st->sum, __ATOMIC_ACQUIRE) == sum)
			return true;
		if (!poll_now(&st->q))
			kq_wake(&st->q);
		sleep_ms(1);
	}
	return false;
}

TEST_F_TIMEOUT(wait, of_many_in_a_storm_leaves_nothing_behind, 60)
{
	struct storm_thread t[STORM_THREADS];
	__u64 random = random_seed();
	struct storm st = { };

	ASSERT_EQ(0, kq_open(&st.q, STORM_EVENTS));
	for (int i = 0; i < STORM_EVENTS; i++)
		ASSERT_EQ(1, kq_add_user(&st.q, i, KEVENT_USER_COUNT, 0, i));
	st.left = STORM_THREADS;
	for (int i = 0; i < STORM_THREADS; i++) {
		t[i].st = &st;
		t[i].random = random + i;
		t[i].modest = !i;
		ASSERT_EQ(0, pthread_create(&t[i].thread, NULL, storm_collect,
					    &t[i]));
	}
	for (int i = 1; i <= STORM_TRIGGERS; i++) {
		__u64 rnd = next_random(&random);

		ASSERT_EQ(1, kq_trigger(&st.q, rnd % STORM_EVENTS, 1, 0));
		if (!(rnd >> 8 & 3))
			pthread_kill(t[(rnd >> 16) % STORM_THREADS].thread,
				     SIGUSR1);
		if (i % 25)
			continue;
		ASSERT_TRUE(storm_calms_down(&st, i))
			TH_LOG("%llu of %d collected", st.sum, i);
	}
	__atomic_store_n(&st.stop, 1, __ATOMIC_RELEASE);
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		if (!__atomic_load_n(&st.left, __ATOMIC_ACQUIRE))
			break;
		kq_wake(&st.q);
		sleep_ms(1);
	}
	ASSERT_EQ(0, st.left);
	for (int i = 0; i < STORM_THREADS; i++)
		pthread_join(t[i].thread, NULL);
	EXPECT_EQ(STORM_TRIGGERS, st.sum);
	EXPECT_EQ(0, st.wrong);
	want_none(&st.q, BY_RING);
	kq_close(&st.q);
}

/*
 * poll(), select() and epoll with the queue
 */

static int poll_now(const struct kq *q)
{
	struct pollfd pfd = { .fd = q->fd, .events = POLLIN };

	return poll(&pfd, 1, 0) == 1 ? pfd.revents : 0;
}

TEST_F(wait, poll_finds_the_queue_readable_while_there_is_an_event)
{
	EXPECT_EQ(0, poll_now(&self->q));
	for (int i = 0; i < 3; i++) {
		signal_eventfd(self->efd[0]);
		EXPECT_EQ(POLLIN, poll_now(&self->q));
		EXPECT_EQ(POLLIN, poll_now(&self->q));
		want(0);
		EXPECT_EQ(0, poll_now(&self->q));
		/* The source is readable, but there is no event. */
		EXPECT_EQ(0, poll_now(&self->q));
	}
	signal_eventfd(self->efd[0]);
	signal_eventfd(self->efd[1]);
	want(0);
	EXPECT_EQ(POLLIN, poll_now(&self->q));
	want_event(&self->q, BY_SYSCALL, self->efd[1], EPOLLIN, EPOLLIN, 1);
	EXPECT_EQ(0, poll_now(&self->q));
}

TEST_F(wait, poll_does_not_count_what_was_deleted)
{
	signal_eventfd(self->efd[0]);
	ASSERT_EQ(1, kq_del(&self->q, self->efd[0]));
	EXPECT_EQ(0, poll_now(&self->q));
}

TEST_F(wait, poll_sees_an_event_behind_claimed_ones)
{
	struct kq ahead = self->q;

	for (int i = 0; i < 3; i++)
		signal_eventfd(self->efd[i]);
	/* The middle one goes first. */
	ahead.map.cursor = 1;
	want_event(&ahead, BY_RING, self->efd[1], EPOLLIN, EPOLLIN, 1);
	want(0);
	EXPECT_EQ(POLLIN, poll_now(&self->q));
	want(2);
	EXPECT_EQ(0, poll_now(&self->q));
}

/* A thread that waits for the queue as for any other file */
struct poller {
	pthread_t thread;
	int (*fn)(int fd);
	int fd;
	pid_t tid;
	int done;
	int ret;
};

static void *poller_fn(void *arg)
{
	struct poller *p = arg;

	__atomic_store_n(&p->tid, syscall(__NR_gettid), __ATOMIC_RELEASE);
	p->ret = p->fn(p->fd);
	__atomic_store_n(&p->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static int by_poll(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, PATIENCE_MS) == 1 && pfd.revents == POLLIN;
}

static int by_select(int fd)
{
	struct timeval tv = { .tv_sec = PATIENCE_MS / 1000 };
	fd_set fds;

	FD_ZERO(&fds);
	FD_SET(fd, &fds);
	return select(fd + 1, &fds, NULL, NULL, &tv) == 1 && FD_ISSET(fd, &fds);
}

static int by_epoll_of(int fd, __u32 events)
{
	struct epoll_event ev = { .events = events };
	int ep = epoll_create1(EPOLL_CLOEXEC);
	int ret;

	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev))
		return -errno;
	ev.events = 0;
	ret = epoll_wait(ep, &ev, 1, PATIENCE_MS) == 1 && ev.events == EPOLLIN;
	close(ep);
	return ret;
}

static int by_epoll(int fd)
{
	return by_epoll_of(fd, EPOLLIN);
}

static int by_epoll_edge(int fd)
{
	return by_epoll_of(fd, EPOLLIN | EPOLLET);
}

TEST_F(wait, for_the_queue_as_a_file_ends_with_an_event)
{
	static int (* const fns[])(int) = {
		by_poll, by_select, by_epoll, by_epoll_edge,
	};

	for (size_t i = 0; i < ARRAY_SIZE(fns); i++) {
		struct poller p = { .fn = fns[i], .fd = self->q.fd };

		ASSERT_EQ(0, pthread_create(&p.thread, NULL, poller_fn, &p));
		wait_until_asleep(&p.tid, &p.done);
		sleep_ms(1);
		signal_eventfd(self->efd[i]);
		pthread_join(p.thread, NULL);
		EXPECT_EQ(1, p.ret)
			TH_LOG("number %zu", i);
		want(i);

		/* And at once, if it is there before */
		signal_eventfd(self->efd[i]);
		EXPECT_EQ(1, fns[i](self->q.fd))
			TH_LOG("number %zu", i);
		want(i);
	}
}

/* Both who waits for the file and who waits in the call are woken. */
TEST_F(wait, for_the_queue_as_a_file_does_not_take_the_wake_up_away)
{
	struct poller p = { .fn = by_poll, .fd = self->q.fd };
	struct waiter w = { };

	ASSERT_EQ(0, pthread_create(&p.thread, NULL, poller_fn, &p));
	wait_until_asleep(&p.tid, &p.done);
	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
	signal_eventfd(self->efd[0]);
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(1, w.ret);
	/* That may have been too fast for the other. */
	signal_eventfd(self->efd[1]);
	pthread_join(p.thread, NULL);
	EXPECT_EQ(1, p.ret);
	want(1);
}

TEST_F(wait, epoll_reports_the_queue_as_long_as_there_is_an_event)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int ep = epoll_create1(EPOLL_CLOEXEC);

	ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, self->q.fd, &ev));
	EXPECT_EQ(0, epoll_wait(ep, &ev, 1, 0));
	signal_eventfd(self->efd[0]);
	EXPECT_EQ(1, epoll_wait(ep, &ev, 1, 0));
	EXPECT_EQ(1, epoll_wait(ep, &ev, 1, 0));
	want(0);
	EXPECT_EQ(0, epoll_wait(ep, &ev, 1, 0));
	signal_eventfd(self->efd[0]);
	EXPECT_EQ(1, epoll_wait(ep, &ev, 1, 0));
	want(0);
	EXPECT_EQ(0, epoll_wait(ep, &ev, 1, 0));
}

TEST_F(wait, edge_triggered_epoll_reports_the_queue_for_each_new_event)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET };
	int ep = epoll_create1(EPOLL_CLOEXEC);

	ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, self->q.fd, &ev));
	EXPECT_EQ(0, epoll_wait(ep, &ev, 1, 0));
	for (int i = 0; i < 3; i++) {
		signal_eventfd(self->efd[i]);
		EXPECT_EQ(1, epoll_wait(ep, &ev, 1, 0));
		EXPECT_EQ(0, epoll_wait(ep, &ev, 1, 0));
	}
	for (int i = 0; i < 3; i++)
		want(i);
	EXPECT_EQ(0, epoll_wait(ep, &ev, 1, 0));
	signal_eventfd(self->efd[0]);
	EXPECT_EQ(1, epoll_wait(ep, &ev, 1, 0));
	want(0);
}

TEST_HARNESS_MAIN
