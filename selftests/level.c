// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: level-triggered registrations.  The call alone collects them, and
 * looks at each of them again; the header of the ring says when it is worth a
 * call; and neither kind of event keeps the other waiting.
 */
#include "kevent_util.h"

#include <sys/signalfd.h>
#include <sys/timerfd.h>

#define SLOTS 8
#define NR 8

static int add_level(const struct kq *q, int fd, __u64 udata)
{
	return kq_add_mode(q, fd, EPOLLIN, KEVENT_LEVEL, udata);
}

static int mod_level(const struct kq *q, int fd, __u64 udata)
{
	return kq_mod_mode(q, fd, EPOLLIN, KEVENT_LEVEL, udata);
}

static bool level_ready(const struct kq *q)
{
	return kevent_ring_flags(&q->map) & KEVENT_RING_LEVEL_READY;
}

static void drain(int fd)
{
	char buf[512];

	while (read(fd, buf, sizeof(buf)) > 0)
		;
}

static void __want_level(struct __test_metadata *_metadata, int line,
			 struct kq *q, int fd, __u64 udata)
{
	__u32 value = __want_mode(_metadata, line, q, BY_SYSCALL, fd, EPOLLIN,
				  EPOLLIN, KEVENT_LEVEL, udata);

	/* It was looked at, so there is no need for a hint. */
	EXPECT_EQ(EPOLLIN, value)
		TH_LOG("line %d", line);
}

/* The call finds nothing, and says so in the header. */
static void __want_rest(struct __test_metadata *_metadata, int line,
			struct kq *q)
{
	__want_none(_metadata, line, q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&q->map))
		TH_LOG("line %d", line);
}

#define want_level(q, fd, udata) \
	__want_level(_metadata, __LINE__, q, fd, udata)
#define want_rest(q) __want_rest(_metadata, __LINE__, q)

/* A bit for the user data of each event; all of them if one came twice */
static __u64 udata_set(const struct ukevent *evs, int nr)
{
	__u64 set = 0;

	for (int i = 0; i < nr; i++) {
		__u64 bit = 1ULL << (evs[i].user_data & 63);

		if (set & bit)
			return ~0ULL;
		set |= bit;
	}
	return set;
}

/* How many of the events are of mode @mode */
static int count_mode(const struct ukevent *evs, int nr, __u32 mode)
{
	int count = 0;

	for (int i = 0; i < nr; i++)
		count += !!(evs[i].flags & mode);
	return count;
}

/*
 * Whatever the source
 */

/**
 * struct source_ops - a kind of source
 * @open: true if it could be opened; fd[0] becomes readable, by way of fd[1]
 * @trigger: makes it readable
 */
struct source_ops {
	bool (*open)(int fd[2]);
	void (*trigger)(int fd[2]);
};

static bool eventfd_open(int fd[2])
{
	fd[0] = open_eventfd();
	fd[1] = fd[0];
	return fd[0] >= 0;
}

static void eventfd_trigger(int fd[2])
{
	signal_eventfd(fd[1]);
}

static bool pipe_open(int fd[2])
{
	return !pipe2(fd, O_CLOEXEC | O_NONBLOCK);
}

static bool socket_open(int fd[2])
{
	return !socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
			   0, fd);
}

static void trigger_by_write(int fd[2])
{
	while (write(fd[1], "x", 1) < 0 && errno == EINTR)
		;
}

static bool timerfd_open(int fd[2])
{
	fd[0] = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	return fd[0] >= 0;
}

static void timerfd_trigger(int fd[2])
{
	struct itimerspec its = { .it_value.tv_nsec = NSEC_PER_MSEC };

	timerfd_settime(fd[0], 0, &its, NULL);
}

/* It wakes those who wait without saying why. */
static bool signalfd_open(int fd[2])
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd[0] = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd[0] >= 0;
}

static void signalfd_trigger(int fd[2] __maybe_unused)
{
	kill(getpid(), SIGUSR1);
}

static const struct source_ops eventfd_ops = { eventfd_open, eventfd_trigger };
static const struct source_ops pipe_ops = { pipe_open, trigger_by_write };
static const struct source_ops socket_ops = { socket_open, trigger_by_write };
static const struct source_ops timerfd_ops = { timerfd_open, timerfd_trigger };
static const struct source_ops signalfd_ops = {
	signalfd_open, signalfd_trigger,
};

FIXTURE(level_source) {
	struct kq q;
	int fd[2];
};

FIXTURE_VARIANT(level_source) {
	const struct source_ops *ops;
};

FIXTURE_VARIANT_ADD(level_source, eventfd) { &eventfd_ops };
FIXTURE_VARIANT_ADD(level_source, pipe) { &pipe_ops };
FIXTURE_VARIANT_ADD(level_source, socket) { &socket_ops };
FIXTURE_VARIANT_ADD(level_source, timerfd) { &timerfd_ops };
FIXTURE_VARIANT_ADD(level_source, signalfd) { &signalfd_ops };

FIXTURE_SETUP(level_source)
{
	if (kq_setup(_metadata, &self->q, SLOTS))
		ASSERT_TRUE(variant->ops->open(self->fd));
}

FIXTURE_TEARDOWN(level_source)
{
	kq_close(&self->q);
}

TEST_F(level_source, is_reported_by_each_call_while_it_is_ready)
{
	ASSERT_EQ(1, add_level(&self->q, self->fd[0], 1));
	want_rest(&self->q);
	for (int i = 0; i < 3; i++) {
		variant->ops->trigger(self->fd);
		for (int j = 0; j < 3; j++)
			want_level(&self->q, self->fd[0], 1);
		drain(self->fd[0]);
		want_rest(&self->q);
		sleep_ms(SETTLE_MS);
		want_rest(&self->q);
	}
}

TEST_F(level_source, that_was_ready_before_is_reported_at_once)
{
	struct pollfd pfd = { .fd = self->fd[0], .events = POLLIN };

	variant->ops->trigger(self->fd);
	ASSERT_EQ(1, poll(&pfd, 1, PATIENCE_MS));
	ASSERT_EQ(1, add_level(&self->q, self->fd[0], 1));
	EXPECT_EQ(KEVENT_RING_LEVEL_READY, kevent_ring_flags(&self->q.map));
	want_level(&self->q, self->fd[0], 1);
	want_level(&self->q, self->fd[0], 1);
}

TEST_F(level_source, is_never_in_the_ring)
{
	ASSERT_EQ(1, add_level(&self->q, self->fd[0], 1));
	variant->ops->trigger(self->fd);
	want_level(&self->q, self->fd[0], 1);
	sleep_ms(SETTLE_MS);
	want_none(&self->q, BY_RING);
	EXPECT_EQ(0, self->q.map.cursor);
}

TEST_F(level_source, ends_the_wait_for_it)
{
	struct waiter w = { };

	ASSERT_EQ(1, add_level(&self->q, self->fd[0], 1));
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 4));
		EXPECT_FALSE(waiter_done(&w));
		variant->ops->trigger(self->fd);
		ASSERT_TRUE(waiter_join(&w));
		ASSERT_EQ(1, w.ret);
		EXPECT_EQ(self->fd[0], w.evs[0].ident);
		EXPECT_EQ(EPOLLIN, w.evs[0].events);
		EXPECT_EQ(KEVENT_LEVEL, w.evs[0].flags);
		drain(self->fd[0]);
	}
}

/*
 * What the events say
 */

/* Eventfds, not registered; the tests use their numbers as user data. */
FIXTURE(level) {
	struct kq q;
	int efd[NR];
};

FIXTURE_SETUP(level)
{
	for (int i = 0; i < NR; i++) {
		self->efd[i] = open_eventfd();
		ASSERT_LE(0, self->efd[i]);
	}
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(level)
{
	kq_close(&self->q);
}

static void __add(struct __test_metadata *_metadata, int line,
		  const struct kq *q, const int *efd, int i, __u32 mode)
{
	ASSERT_EQ(1, kq_add_mode(q, efd[i], EPOLLIN, mode, i))
		TH_LOG("line %d", line);
}

static void __add_ready(struct __test_metadata *_metadata, int line,
			const struct kq *q, const int *efd, int i)
{
	signal_eventfd(efd[i]);
	__add(_metadata, line, q, efd, i, KEVENT_LEVEL);
}

static void __want(struct __test_metadata *_metadata, int line, struct kq *q,
		   const int *efd, int i)
{
	__want_level(_metadata, line, q, efd[i], i);
}

#define add(i) \
	__add(_metadata, __LINE__, &self->q, self->efd, i, KEVENT_LEVEL)
#define add_edge(i) \
	__add(_metadata, __LINE__, &self->q, self->efd, i, KEVENT_EDGE)
#define add_ready(i) \
	__add_ready(_metadata, __LINE__, &self->q, self->efd, i)
#define want(i) __want(_metadata, __LINE__, &self->q, self->efd, i)

TEST_F(level, event_has_nothing_but_what_it_says)
{
	struct ukevent ev;

	add_ready(3);
	memset(&ev, 0xff, sizeof(ev));
	ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
	EXPECT_EQ(self->efd[3], ev.ident);
	EXPECT_EQ(KEVENT_SOURCE_FD, ev.source);
	EXPECT_EQ(0, ev.op);
	EXPECT_EQ(KEVENT_LEVEL, ev.flags);
	EXPECT_EQ(EPOLLIN, ev.events);
	EXPECT_EQ(0, ev.result);
	EXPECT_EQ(3, ev.user_data);
	EXPECT_EQ(0, ev.data);
	EXPECT_EQ(0, ev.fflags);
	EXPECT_EQ(0, ev.tag);
	EXPECT_EQ(0, ev.interval);
	EXPECT_EQ(0, ev.resv);
}

TEST_F(level, event_says_what_is_so_when_it_is_collected)
{
	const __u32 asked = EPOLLIN | EPOLLOUT | EPOLLRDHUP;
	struct ukevent ev;
	int s[2];

	ASSERT_TRUE(socket_open(s));
	ASSERT_EQ(1, kq_add_mode(&self->q, s[0], asked, KEVENT_LEVEL, 1));
	ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
	EXPECT_EQ(EPOLLOUT, ev.events);
	trigger_by_write(s);
	ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
	EXPECT_EQ(EPOLLIN | EPOLLOUT, ev.events);
	drain(s[0]);
	ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
	EXPECT_EQ(EPOLLOUT, ev.events);
	ASSERT_EQ(0, shutdown(s[1], SHUT_WR));
	ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
	EXPECT_EQ(asked, ev.events);
}

TEST_F(level, hang_up_is_reported_by_each_call_unasked)
{
	struct ukevent ev;
	int p[2];

	ASSERT_TRUE(pipe_open(p));
	ASSERT_EQ(1, kq_add_mode(&self->q, p[0], 0, KEVENT_LEVEL, 1));
	trigger_by_write(p);
	want_rest(&self->q);
	close(p[1]);
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, kq_getevents(&self->q, &ev, 1, 1, PATIENCE_MS));
		EXPECT_EQ(EPOLLHUP, ev.events);
	}
}

/* Nobody is woken because a pipe is full. */
TEST_F(level, room_is_reported_until_there_is_none)
{
	char page[4096] = { };
	int p[2];

	ASSERT_TRUE(pipe_open(p));
	ASSERT_EQ(1, kq_add_mode(&self->q, p[1], EPOLLOUT, KEVENT_LEVEL, 1));
	for (int i = 0; i < 2; i++) {
		for (int j = 0; j < 3; j++)
			want_mode(&self->q, BY_SYSCALL, p[1], EPOLLOUT,
				  EPOLLOUT, KEVENT_LEVEL, 1);
		while (write(p[1], page, sizeof(page)) > 0)
			;
		want_rest(&self->q);
		drain(p[0]);
	}
}

/* A file is asked, not what woke the queue last. */
TEST_F(level, source_that_was_drained_is_not_reported)
{
	struct ukevent evs[NR];

	for (int i = 0; i < 4; i++)
		add_ready(i);
	ASSERT_EQ(4, kq_getevents(&self->q, evs, 0, NR, 0));
	drain(self->efd[0]);
	drain(self->efd[2]);
	ASSERT_EQ(2, kq_getevents(&self->q, evs, 0, NR, 0));
	EXPECT_EQ(1U << 1 | 1U << 3, udata_set(evs, 2));
	/* Nor does it take the place of another. */
	drain(self->efd[1]);
	signal_eventfd(self->efd[2]);
	drain(self->efd[2]);
	for (int i = 0; i < 3; i++)
		want(3);
	drain(self->efd[3]);
	want_rest(&self->q);
}

TEST_F(level, event_that_cannot_be_copied_is_not_lost)
{
	int ret;

	add_ready(0);
	ret = kq_getevents(&self->q, (struct ukevent *)8, 1, 1, MOMENT_MS);
	EXPECT_EQ(-EFAULT, ret);
	EXPECT_TRUE(level_ready(&self->q));
	want(0);
}

TEST_F(level, is_for_files_alone)
{
	struct ukevent change;

	change = kq_timer_change(KEVENT_OP_ADD, 1, CLOCK_MONOTONIC,
				 NSEC_PER_SEC, 0, 0, 0);
	change.flags = KEVENT_LEVEL;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, change));
	change = kq_user_change(KEVENT_OP_ADD, 1, KEVENT_USER_COUNT, 0, 0);
	change.flags = KEVENT_LEVEL;
	EXPECT_EQ(-EINVAL, kq_apply(&self->q, change));
	/* It is the one or the other. */
	EXPECT_EQ(-EINVAL, kq_add_mode(&self->q, self->efd[0], EPOLLIN,
				       KEVENT_LEVEL | KEVENT_EDGE, 0));
	EXPECT_EQ(-EINVAL, kq_add_mode(&self->q, self->efd[0], EPOLLIN, 0, 0));
}

/*
 * What the header says
 */

TEST_F(level, header_says_when_a_source_is_ready)
{
	add(0);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	for (int i = 0; i < 3; i++) {
		signal_eventfd(self->efd[0]);
		EXPECT_TRUE(level_ready(&self->q));
		want(0);
		/* It is ready still. */
		EXPECT_TRUE(level_ready(&self->q));
		drain(self->efd[0]);
		want_rest(&self->q);
	}
}

TEST_F(level, header_says_nothing_because_of_the_ring)
{
	add_edge(0);
	for (int i = 0; i < 3; i++) {
		signal_eventfd(self->efd[0]);
		EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
		want_event(&self->q, i % 2 ? BY_RING : BY_SYSCALL, self->efd[0],
			   EPOLLIN, EPOLLIN, 0);
		EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	}
}

TEST_F(level, header_says_so_until_no_source_is_ready)
{
	struct ukevent evs[NR];

	for (int i = 0; i < 3; i++)
		add_ready(i);
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(3 - i, kq_getevents(&self->q, evs, 0, NR, 0));
		EXPECT_TRUE(level_ready(&self->q));
		drain(self->efd[i]);
	}
	want_rest(&self->q);
	/* And with room for one event alone */
	for (int i = 0; i < 3; i++)
		signal_eventfd(self->efd[i]);
	ASSERT_EQ(1, kq_getevents(&self->q, evs, 0, 1, 0));
	for (int i = 0; i < 3; i++)
		drain(self->efd[i]);
	ASSERT_EQ(0, kq_getevents(&self->q, evs, 0, 1, 0));
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
}

TEST_F(level, header_follows_the_end_of_a_ready_source)
{
	const int fd = self->efd[2];
	struct ukevent change;

	add_ready(0);
	want(0);
	ASSERT_EQ(1, kq_del(&self->q, self->efd[0]));
	want_rest(&self->q);

	add_ready(1);
	want(1);
	close(self->efd[1]);
	want_rest(&self->q);

	add_ready(2);
	want(2);
	change = kq_change(KEVENT_SOURCE_FD, KEVENT_OP_DISABLE, fd, 0);
	ASSERT_EQ(1, kq_apply(&self->q, change));
	want_rest(&self->q);
	signal_eventfd(fd);
	want_rest(&self->q);
	change.op = KEVENT_OP_ENABLE;
	ASSERT_EQ(1, kq_apply(&self->q, change));
	EXPECT_TRUE(level_ready(&self->q));
	want(2);
}

TEST_F(level, header_tells_a_new_source_from_a_ready_one)
{
	add(0);
	ASSERT_EQ(1, mod_level(&self->q, self->efd[0], 10));
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	add_ready(1);
	EXPECT_TRUE(level_ready(&self->q));
	ASSERT_EQ(1, mod_level(&self->q, self->efd[1], 11));
	EXPECT_TRUE(level_ready(&self->q));
	want_level(&self->q, self->efd[1], 11);
}

TEST_F(level, poll_finds_the_queue_readable_while_a_source_is_ready)
{
	struct pollfd pfd = { .fd = self->q.fd, .events = POLLIN };

	add(0);
	EXPECT_EQ(0, poll(&pfd, 1, 0));
	for (int i = 0; i < 3; i++) {
		signal_eventfd(self->efd[0]);
		EXPECT_EQ(1, poll(&pfd, 1, 0));
		want(0);
		EXPECT_EQ(1, poll(&pfd, 1, 0));
		drain(self->efd[0]);
		want_rest(&self->q);
		EXPECT_EQ(0, poll(&pfd, 1, 0));
	}
}

/*
 * The consumer that the header is for: it takes what is in the ring, and makes
 * a call if the header says that it is worth it.
 */

#define THRIFTY_BATCH 4

static int collect_thriftily(struct kq *q, struct ukevent *evs,
			     unsigned int *calls)
{
	int nr = kq_collect(q, BY_RING, evs, THRIFTY_BATCH);
	int more = 0;

	if (kevent_ring_flags(&q->map)) {
		more = kq_collect(q, BY_SYSCALL, evs + nr, THRIFTY_BATCH);
		++*calls;
	}
	return more < 0 ? more : nr + more;
}

TEST_F(level, costs_a_consumer_of_the_ring_no_call_until_it_is_ready)
{
	const int rounds = 300;
	struct ukevent evs[2 * THRIFTY_BATCH];
	unsigned int calls = 0;

	for (int i = 0; i < 3; i++)
		add(i);
	add_edge(4);
	for (int i = 0; i < rounds; i++) {
		signal_eventfd(self->efd[4]);
		ASSERT_EQ(1, collect_thriftily(&self->q, evs, &calls));
		ASSERT_EQ(4, evs[0].user_data);
	}
	EXPECT_EQ(0, calls);
}

/* One to collect it, one to learn that there is no more */
TEST_F(level, costs_a_consumer_of_the_ring_two_calls_at_most)
{
	const int rounds = 300;
	struct ukevent evs[2 * THRIFTY_BATCH];
	unsigned int calls = 0, before;
	int level = 0;

	for (int i = 0; i < 3; i++)
		add(i);
	add_edge(4);
	for (int i = 0; i < rounds; i++) {
		bool now = i % 10 == 0;
		int nr;

		if (now)
			signal_eventfd(self->efd[i / 10 % 3]);
		signal_eventfd(self->efd[4]);
		before = calls;
		nr = collect_thriftily(&self->q, evs, &calls);
		/* It comes with the next look, whatever is in the ring. */
		ASSERT_EQ(now ? 2 : 1, nr);
		EXPECT_EQ(1, count_mode(evs, nr, KEVENT_LEVEL) + !now);
		level += count_mode(evs, nr, KEVENT_LEVEL);
		if (now) {
			EXPECT_EQ(before + 1, calls);
			drain(self->efd[i / 10 % 3]);
		} else if (i % 10 > 1) {
			EXPECT_EQ(before, calls)
				TH_LOG("call for nothing in round %d", i);
		}
	}
	EXPECT_EQ(rounds / 10, level);
	EXPECT_LE(calls, 2 * level);
	EXPECT_GE(calls, level);
}

#define FLOOD 4000	/* writes to the eventfds of one kind */
#define FLOOD_FDS 4

/* Writes to eventfds, in turn. */
struct flood {
	pthread_t thread;
	const int *fd;
	unsigned int nr_fds;
	unsigned int writes;
	const int *stop;	/* if not null: goes on until it is set */
};

static void *flood_fn(void *arg)
{
	struct flood *f = arg;

	for (unsigned int i = 0; i < f->writes; i++) {
		signal_eventfd(f->fd[i % f->nr_fds]);
		if (f->stop && __atomic_load_n(f->stop, __ATOMIC_ACQUIRE))
			break;
	}
	return NULL;
}

static int flood_start(struct flood *f)
{
	return -pthread_create(&f->thread, NULL, flood_fn, f);
}

TEST_F_TIMEOUT(level, costs_a_consumer_under_fire_two_calls_at_most, 60)
{
	const unsigned int signals = FLOOD / 10;
	struct flood edges = {
		.fd = self->efd, .nr_fds = FLOOD_FDS, .writes = FLOOD,
	};
	struct flood levels = {
		.fd = self->efd + FLOOD_FDS, .nr_fds = 2, .writes = signals,
	};
	struct ukevent evs[2 * THRIFTY_BATCH];
	__u64 edge_sum = 0, level_sum = 0;
	unsigned int calls = 0;
	__s64 last = now_ns();

	for (int i = 0; i < FLOOD_FDS; i++)
		add_edge(i);
	for (int i = 0; i < 2; i++)
		add(FLOOD_FDS + i);
	ASSERT_EQ(0, flood_start(&edges));
	ASSERT_EQ(0, flood_start(&levels));
	while (edge_sum < FLOOD || level_sum < signals) {
		int nr = collect_thriftily(&self->q, evs, &calls);

		ASSERT_LE(0, nr);
		if (!nr)
			kq_getevents(&self->q, NULL, 1, 0, MOMENT_MS);
		else
			last = now_ns();
		ASSERT_LT(now_ns() - last, PATIENCE_MS * NSEC_PER_MSEC)
			TH_LOG("%llu of %u edges, %llu of %u levels", edge_sum,
			       FLOOD, level_sum, signals);
		for (int i = 0; i < nr; i++) {
			bool level = evs[i].user_data >= FLOOD_FDS;
			__u64 n = drain_eventfd(evs[i].ident);

			if (level)
				level_sum += n;
			else
				edge_sum += n;
		}
	}
	pthread_join(edges.thread, NULL);
	pthread_join(levels.thread, NULL);
	EXPECT_EQ(FLOOD, edge_sum);
	EXPECT_EQ(signals, level_sum);
	EXPECT_LE(calls, 2 * signals);
}

/*
 * Fairness
 */

TEST_F(level, source_is_reported_once_by_each_call)
{
	struct ukevent evs[2 * NR];

	for (int i = 0; i < NR; i++)
		add_ready(i);
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(NR, kq_getevents(&self->q, evs, 0, 2 * NR, 0));
		EXPECT_EQ((1U << NR) - 1, udata_set(evs, NR));
		signal_eventfd(self->efd[i]);
	}
}

TEST_F(level, sources_take_turns_when_one_event_fits)
{
	struct ukevent ev;
	unsigned int first[3];

	for (int i = 0; i < 3; i++)
		add_ready(i);
	for (int i = 0; i < 12; i++) {
		ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
		if (i < 3)
			first[i] = ev.user_data;
		EXPECT_EQ(first[i % 3], ev.user_data)
			TH_LOG("call %d", i);
	}
	EXPECT_EQ(7, 1U << first[0] | 1U << first[1] | 1U << first[2]);
}

TEST_F(level, sources_take_turns_whatever_fits)
{
	const int nr = 5;
	struct ukevent evs[NR];

	for (int i = 0; i < nr; i++)
		add_ready(i);
	for (int max = 1; max <= nr + 2; max++) {
		int count[NR] = { };

		for (int call = 0; call < 12; call++) {
			int got = kq_getevents(&self->q, evs, 0, max, 0);
			int least = INT32_MAX, most = 0;

			ASSERT_EQ(max < nr ? max : nr, got);
			ASSERT_NE(~0ULL, udata_set(evs, got));
			for (int i = 0; i < got; i++)
				count[evs[i].user_data]++;
			for (int i = 0; i < nr; i++) {
				least = count[i] < least ? count[i] : least;
				most = count[i] > most ? count[i] : most;
			}
			EXPECT_LE(most - least, 1)
				TH_LOG("buffer of %d, call %d", max, call);
		}
	}
}

TEST_F(level, source_gets_no_more_turns_by_being_busy)
{
	int count[4] = { };
	struct ukevent ev;

	for (int i = 0; i < 4; i++)
		add_ready(i);
	for (int call = 0; call < 80; call++) {
		for (int i = 0; i < 3; i++)
			signal_eventfd(self->efd[1]);
		ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
		count[ev.user_data]++;
	}
	for (int i = 0; i < 4; i++) {
		EXPECT_EQ(20, count[i])
			TH_LOG("source %d", i);
	}
}

/* Sources that come, and come back, wait behind those that are there. */
TEST_F(level, newcomers_do_not_push_ahead)
{
	struct ukevent ev;
	int since = 0;

	for (int i = 0; i < NR; i++)
		add(i);
	signal_eventfd(self->efd[0]);
	for (int call = 0; call < 100; call++) {
		ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
		if (ev.user_data) {
			/* It is over, and there are two new ones. */
			drain(ev.ident);
			since++;
		} else {
			since = 0;
		}
		ASSERT_LT(since, NR)
			TH_LOG("a source was passed over");
		signal_eventfd(self->efd[1 + call % (NR - 1)]);
		signal_eventfd(self->efd[1 + (call * 3 + 1) % (NR - 1)]);
	}
}

TEST_F(level, sources_go_on_taking_turns_when_one_is_deleted)
{
	unsigned int seen;
	struct ukevent ev;

	for (int i = 0; i < 5; i++)
		add_ready(i);
	ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
	ASSERT_EQ(1, kq_del(&self->q, self->efd[(ev.user_data + 1) % 5]));
	ASSERT_EQ(0, close(self->efd[(ev.user_data + 3) % 5]));
	seen = 1U << (ev.user_data + 1) % 5 | 1U << (ev.user_data + 3) % 5;
	for (int round = 0; round < 4; round++) {
		unsigned int now = seen;

		for (int i = 0; i < 3; i++) {
			ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
			now |= 1U << ev.user_data;
		}
		EXPECT_EQ(31, now);
	}
}

TEST_F(level, shares_a_buffer_of_two_with_the_ring)
{
	struct ukevent evs[2];

	for (int i = 0; i < 4; i++) {
		add_edge(i);
		signal_eventfd(self->efd[i]);
	}
	for (int i = 4; i < 7; i++)
		add_ready(i);
	for (int call = 0; call < 4; call++) {
		ASSERT_EQ(2, kq_getevents(&self->q, evs, 0, 2, 0));
		EXPECT_EQ(1, count_mode(evs, 2, KEVENT_LEVEL));
		EXPECT_EQ(1, count_mode(evs, 2, KEVENT_EDGE))
			TH_LOG("call %d", call);
	}
	/* There are no others left. */
	ASSERT_EQ(2, kq_getevents(&self->q, evs, 0, 2, 0));
	EXPECT_EQ(2, count_mode(evs, 2, KEVENT_LEVEL));
}

TEST_F(level, alternates_with_the_ring_in_one_buffer)
{
	struct ukevent evs[NR];

	for (int i = 0; i < 3; i++) {
		add_edge(i);
		add_ready(3 + i);
	}
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 3; i++)
			signal_eventfd(self->efd[i]);
		ASSERT_EQ(6, kq_getevents(&self->q, evs, 0, NR, 0));
		EXPECT_EQ(0x3f, udata_set(evs, 6));
		for (int i = 1; i < 6; i++) {
			EXPECT_NE(evs[i - 1].flags, evs[i].flags)
				TH_LOG("event %d", i);
		}
	}
}

TEST_F(level, alternates_with_the_ring_from_call_to_call)
{
	struct ukevent ev;
	__u32 last = 0;

	for (int i = 0; i < 6; i++) {
		add_edge(i);
		signal_eventfd(self->efd[i]);
	}
	for (int i = 6; i < 8; i++)
		add_ready(i);
	/* The last of the six comes with the twelfth call at the latest. */
	for (int call = 0; call < 11; call++) {
		ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
		EXPECT_NE(last, ev.flags)
			TH_LOG("call %d", call);
		last = ev.flags;
	}
}

/* However much comes, of the one kind or the other */
TEST_F(level, flood_on_the_ring_starves_nobody)
{
	static const int sizes[] = { 1, 2, 3, 5 };
	struct ukevent evs[5];
	__u32 last = 0;

	for (int i = 0; i < 6; i++)
		add_edge(i);
	for (int i = 6; i < 8; i++)
		add_ready(i);
	for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
		for (int call = 0; call < 60; call++) {
			int nr, level;

			for (int i = 0; i < 6; i++)
				signal_eventfd(self->efd[i]);
			nr = kq_getevents(&self->q, evs, 0, sizes[s], 0);
			ASSERT_EQ(sizes[s], nr);
			level = count_mode(evs, nr, KEVENT_LEVEL);
			if (nr > 1) {
				EXPECT_LT(0, level);
				EXPECT_LT(level, nr)
					TH_LOG("buffer of %d", nr);
			} else {
				EXPECT_NE(last, evs[0].flags);
				last = evs[0].flags;
			}
		}
	}
}

TEST_F(level, flood_of_level_sources_starves_nobody)
{
	struct ukevent change, evs[2];

	/* Sixty that are always ready */
	signal_eventfd(self->efd[0]);
	change = kq_mode_change(KEVENT_OP_ADD, self->efd[0], EPOLLIN,
				KEVENT_LEVEL, 0);
	for (change.tag = 0; change.tag < 60; change.tag++)
		ASSERT_EQ(1, kq_apply(&self->q, change));
	add_edge(1);
	for (int i = 0; i < 100; i++) {
		int max = 1 + i % 2, calls = max == 1 ? 2 : 1, edges = 0;

		signal_eventfd(self->efd[1]);
		while (calls--) {
			ASSERT_EQ(max, kq_getevents(&self->q, evs, 0, max, 0));
			edges += count_mode(evs, max, KEVENT_EDGE);
		}
		ASSERT_EQ(1, edges)
			TH_LOG("event %d was kept waiting", i);
	}
}

TEST_F_TIMEOUT(level, flood_from_another_thread_starves_nobody, 60)
{
	int stop = 0;
	/* All of them edge sources, at first */
	struct flood f = {
		.fd = self->efd, .nr_fds = 4, .writes = 1000000, .stop = &stop,
	};
	struct ukevent evs[2];
	int starved = 0, calls;

	for (int i = 0; i < 4; i++)
		add_edge(i);
	add_ready(4);
	ASSERT_EQ(0, flood_start(&f));
	for (calls = 0; calls < 1500; calls++) {
		int nr = kq_getevents(&self->q, evs, 1, 2, PATIENCE_MS);

		ASSERT_LT(0, nr);
		/* It is ready all the time. */
		starved += count_mode(evs, nr, KEVENT_LEVEL) != 1;
	}
	EXPECT_EQ(0, starved);

	/* And the other way round */
	drain(self->efd[4]);
	ASSERT_EQ(1, kq_mod(&self->q, self->efd[4], EPOLLIN, 4));
	for (int i = 0; i < 4; i++)
		ASSERT_EQ(1, mod_level(&self->q, self->efd[i], i));
	while (kq_getevents(&self->q, evs, 0, 2, 0) == 2 &&
	       count_mode(evs, 2, KEVENT_EDGE))
		;
	for (calls = 0; calls < 1500; calls++) {
		int nr;

		signal_eventfd(self->efd[4]);
		nr = kq_getevents(&self->q, evs, 1, 2, PATIENCE_MS);
		ASSERT_LT(0, nr);
		starved += count_mode(evs, nr, KEVENT_EDGE) != 1;
	}
	EXPECT_EQ(0, starved);
	__atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
	pthread_join(f.thread, NULL);
}

TEST_F_TIMEOUT(level, floods_of_both_kinds_lose_nothing, 60)
{
	struct flood f[2] = {
		{ .fd = self->efd, .nr_fds = 4, .writes = FLOOD },
		{ .fd = self->efd + 4, .nr_fds = 4, .writes = FLOOD },
	};
	__u64 sum[2] = { };
	struct ukevent evs[2];
	__s64 last = now_ns();

	for (int i = 0; i < 4; i++) {
		add_edge(i);
		add(4 + i);
	}
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(0, flood_start(&f[i]));
	while (sum[0] < FLOOD || sum[1] < FLOOD) {
		int nr = kq_getevents(&self->q, evs, 1, 2, MOMENT_MS);

		ASSERT_LE(0, nr);
		if (nr)
			last = now_ns();
		ASSERT_LT(now_ns() - last, PATIENCE_MS * NSEC_PER_MSEC)
			TH_LOG("%llu and %llu of %d came", sum[0], sum[1],
			       FLOOD);
		for (int i = 0; i < nr; i++)
			sum[evs[i].user_data / 4] +=
				drain_eventfd(evs[i].ident);
	}
	for (int i = 0; i < 2; i++) {
		pthread_join(f[i].thread, NULL);
		EXPECT_EQ(FLOOD, sum[i]);
	}
	want_rest(&self->q);
}

/*
 * Waiting
 */

TEST_F(level, source_counts_once_for_the_least_number_of_events)
{
	struct waiter w = { };

	for (int i = 0; i < 3; i++)
		add(i);
	ASSERT_EQ(0, waiter_start(&w, &self->q, 2, 4));
	for (int i = 0; i < 3; i++)
		signal_eventfd(self->efd[1]);
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	signal_eventfd(self->efd[0]);
	ASSERT_TRUE(waiter_join(&w));
	ASSERT_EQ(2, w.ret);
	EXPECT_EQ(3, udata_set(w.evs, 2));
}

TEST_F(level, sources_and_the_ring_count_together)
{
	for (int i = 0; i < 2; i++) {
		struct waiter w = { };

		if (!i) {
			add(0);
			add_edge(1);
		}
		ASSERT_EQ(0, waiter_start(&w, &self->q, 2, 4));
		signal_eventfd(self->efd[i]);
		sleep_ms(MOMENT_MS);
		EXPECT_FALSE(waiter_done(&w));
		signal_eventfd(self->efd[1 - i]);
		ASSERT_TRUE(waiter_join(&w));
		ASSERT_EQ(2, w.ret);
		EXPECT_EQ(3, udata_set(w.evs, 2));
		drain(self->efd[0]);
		want_rest(&self->q);
	}
}

TEST_F(level, sources_are_counted_without_being_collected)
{
	EXPECT_EQ(0, kq_getevents(&self->q, NULL, 1, 0, 0));
	add_ready(0);
	add_ready(1);
	EXPECT_EQ(1, kq_getevents(&self->q, NULL, 1, 0, PATIENCE_MS));
	EXPECT_EQ(2, kq_getevents(&self->q, NULL, 2, 0, PATIENCE_MS));
	EXPECT_EQ(2, kq_getevents(&self->q, NULL, NR, 0, 0));
	add_edge(2);
	signal_eventfd(self->efd[2]);
	EXPECT_EQ(3, kq_getevents(&self->q, NULL, 3, 0, PATIENCE_MS));
	EXPECT_EQ(3, kq_getevents(&self->q, NULL, NR, 0, 0));
	EXPECT_TRUE(level_ready(&self->q));
}

TEST_F(level, source_ends_a_wait_without_collecting)
{
	struct waiter w = { .wait_only = true };

	add(0);
	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 0));
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	signal_eventfd(self->efd[0]);
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(1, w.ret);
	EXPECT_TRUE(level_ready(&self->q));
	want(0);
}

/* Nobody sleeps while there is something to collect. */
TEST_F(level, one_ready_source_ends_the_wait_of_all)
{
	struct waiter w[6] = { };

	add(0);
	/* Whether the buffer of who was woken is full then, or not */
	for (int max = 1; max <= 2; max++) {
		for (int i = 0; i < 6; i++)
			ASSERT_EQ(0, waiter_start(&w[i], &self->q, 1, max));
		signal_eventfd(self->efd[0]);
		for (int i = 0; i < 6; i++) {
			ASSERT_TRUE(waiter_join(&w[i]))
				TH_LOG("waiter %d sleeps on", i);
			EXPECT_EQ(1, w[i].ret);
			EXPECT_EQ(0, w[i].evs[0].user_data);
		}
		drain_eventfd(self->efd[0]);
	}
}

TEST_F(level, many_sources_end_the_wait_of_many)
{
	struct waiter w[NR] = { };

	for (int i = 0; i < NR; i++) {
		add(i);
		w[i].wait_only = i % 3 == 2;
		ASSERT_EQ(0, waiter_start(&w[i], &self->q, 1, 1));
	}
	for (int i = 0; i < NR; i++)
		signal_eventfd(self->efd[i]);
	for (int i = 0; i < NR; i++) {
		ASSERT_TRUE(waiter_join(&w[i]))
			TH_LOG("waiter %d sleeps on", i);
		EXPECT_EQ(1, w[i].ret);
	}
}

TEST_F(level, wait_for_less_is_not_held_up_by_one_for_more)
{
	for (int i = 0; i < NR; i++)
		add(i);
	for (int first = 0; first < 2; first++) {
		struct waiter less = { }, more = { };

		if (first)
			ASSERT_EQ(0, waiter_start(&less, &self->q, 1, 1));
		ASSERT_EQ(0, waiter_start(&more, &self->q, NR, NR));
		if (!first)
			ASSERT_EQ(0, waiter_start(&less, &self->q, 1, 1));
		signal_eventfd(self->efd[3]);
		ASSERT_TRUE(waiter_join(&less));
		EXPECT_EQ(1, less.ret);
		sleep_ms(MOMENT_MS);
		EXPECT_FALSE(waiter_done(&more));
		for (int i = 0; i < NR; i++)
			signal_eventfd(self->efd[i]);
		ASSERT_TRUE(waiter_join(&more));
		EXPECT_EQ(NR, more.ret);
		EXPECT_EQ((1U << NR) - 1, udata_set(more.evs, NR));
		for (int i = 0; i < NR; i++)
			drain(self->efd[i]);
		want_rest(&self->q);
	}
}

TEST_F(level, source_that_is_ready_no_more_ends_no_wait)
{
	struct ukevent ev;
	__s64 start;

	add_ready(0);
	want(0);
	drain(self->efd[0]);
	EXPECT_TRUE(level_ready(&self->q));
	start = now_ns();
	EXPECT_EQ(0, kq_getevents(&self->q, &ev, 1, 1, MOMENT_MS));
	EXPECT_LE(MOMENT_MS * NSEC_PER_MSEC, now_ns() - start);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	signal_eventfd(self->efd[0]);
	want(0);
}

TEST_F(level, source_that_is_ready_no_more_is_not_counted)
{
	struct waiter w = { };

	for (int i = 0; i < 3; i++)
		add(i);
	ASSERT_EQ(0, waiter_start(&w, &self->q, 2, 4));
	signal_eventfd(self->efd[0]);
	sleep_ms(1);
	drain(self->efd[0]);
	signal_eventfd(self->efd[1]);
	sleep_ms(MOMENT_MS);
	ASSERT_FALSE(waiter_done(&w))
		TH_LOG("returned %d", w.ret);
	signal_eventfd(self->efd[2]);
	ASSERT_TRUE(waiter_join(&w));
	ASSERT_EQ(2, w.ret);
	EXPECT_EQ(1U << 1 | 1U << 2, udata_set(w.evs, 2));
}

/* Who is woken may find that it is over.  It sleeps, and is woken again. */
TEST_F(level, wait_goes_on_if_the_source_is_drained_by_another)
{
	struct waiter w = { };

	add(0);
	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
	for (int i = 0; i < 200; i++) {
		signal_eventfd(self->efd[0]);
		drain(self->efd[0]);
		if (!waiter_done(&w))
			continue;
		ASSERT_TRUE(waiter_join(&w));
		ASSERT_EQ(1, w.ret);
		ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
	}
	signal_eventfd(self->efd[0]);
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(1, w.ret);
}

/* A wait that the end of a source would have to end goes on. */
TEST_F(level, wait_does_not_end_with_a_source)
{
	struct waiter w = { };

	for (int i = 0; i < 3; i++)
		add(i);
	ASSERT_EQ(0, waiter_start(&w, &self->q, 2, 2));
	signal_eventfd(self->efd[0]);
	ASSERT_EQ(1, kq_del(&self->q, self->efd[0]));
	signal_eventfd(self->efd[1]);
	close(self->efd[1]);
	sleep_ms(MOMENT_MS);
	EXPECT_FALSE(waiter_done(&w));
	add(0);
	signal_eventfd(self->efd[2]);
	ASSERT_TRUE(waiter_join(&w));
	ASSERT_EQ(2, w.ret);
	EXPECT_EQ(1U << 0 | 1U << 2, udata_set(w.evs, 2));
}

/*
 * The end of a source, and its modification
 */

TEST_F(level, deletion_ends_the_reports_of_a_ready_source)
{
	add_ready(0);
	want(0);
	ASSERT_EQ(1, kq_del(&self->q, self->efd[0]));
	want_rest(&self->q);
	signal_eventfd(self->efd[0]);
	want_rest(&self->q);
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->efd[0]));

	/* Also if nobody was told of it yet */
	add(0);
	ASSERT_EQ(1, kq_del(&self->q, self->efd[0]));
	want_rest(&self->q);
	add(0);
	want(0);
}

TEST_F(level, closing_ends_the_reports_of_a_ready_source)
{
	int copy = dup(self->efd[0]);

	add_ready(0);
	want(0);
	ASSERT_EQ(0, close(self->efd[0]));
	signal_eventfd(copy);
	want_rest(&self->q);
	/* The number is free for another. */
	ASSERT_EQ(self->efd[0], dup2(copy, self->efd[0]));
	want_rest(&self->q);
	add(0);
	want(0);
}

TEST_F(level, modification_changes_mask_and_user_data_of_a_ready_source)
{
	const int fd = self->efd[0];

	add_ready(0);
	want(0);
	ASSERT_EQ(1, mod_level(&self->q, fd, 77));
	want_level(&self->q, fd, 77);
	want_level(&self->q, fd, 77);
	ASSERT_EQ(1, kq_mod_mode(&self->q, fd, EPOLLPRI, KEVENT_LEVEL, 78));
	want_rest(&self->q);
	signal_eventfd(fd);
	want_rest(&self->q);
	ASSERT_EQ(1, kq_mod_mode(&self->q, fd, EPOLLOUT, KEVENT_LEVEL, 79));
	want_mode(&self->q, BY_SYSCALL, fd, EPOLLOUT, EPOLLOUT, KEVENT_LEVEL,
		  79);
	ASSERT_EQ(1, mod_level(&self->q, fd, 80));
	want_level(&self->q, fd, 80);
}

TEST_F(level, becomes_edge_by_modification)
{
	const int fd = self->efd[0];

	add_ready(0);
	want(0);
	ASSERT_EQ(1, kq_mod(&self->q, fd, EPOLLIN, 10));
	/* It is ready, so that is reported once, and in the ring. */
	want_event(&self->q, BY_RING, fd, EPOLLIN, EPOLLIN, 10);
	want_rest(&self->q);
	signal_eventfd(fd);
	EXPECT_FALSE(level_ready(&self->q));
	want_event(&self->q, BY_SYSCALL, fd, EPOLLIN, EPOLLIN, 10);
	want_rest(&self->q);
}

TEST_F(level, is_made_of_edge_by_modification)
{
	const int fd = self->efd[0];

	add_edge(0);
	signal_eventfd(fd);
	ASSERT_EQ(1, mod_level(&self->q, fd, 10));
	EXPECT_TRUE(level_ready(&self->q));
	/* The unclaimed event is none any more. */
	want_none(&self->q, BY_RING);
	for (int i = 0; i < 3; i++) {
		want_level(&self->q, fd, 10);
		want_none(&self->q, BY_RING);
	}
	drain(fd);
	want_rest(&self->q);
	signal_eventfd(fd);
	want_none(&self->q, BY_RING);
	want_level(&self->q, fd, 10);
}

TEST_F(level, changes_places_with_edge_again_and_again)
{
	const int fd = self->efd[0];

	add_ready(0);
	for (int i = 1; i < 4 * SLOTS; i++) {
		if (i % 2) {
			ASSERT_EQ(1, kq_mod(&self->q, fd, EPOLLIN, i));
			want_event(&self->q, i % 3 ? BY_RING : BY_SYSCALL, fd,
				   EPOLLIN, EPOLLIN, i);
			want_rest(&self->q);
		} else {
			ASSERT_EQ(1, mod_level(&self->q, fd, i));
			want_level(&self->q, fd, i);
			want_level(&self->q, fd, i);
		}
	}
}

/* Modes change under fire. */
struct changer {
	pthread_t thread;
	const struct kq *q;
	const int *fd;
	unsigned int nr_fds;
	unsigned int changes;
	int failed;
};

static void *changer_fn(void *arg)
{
	struct changer *c = arg;

	for (unsigned int i = 0; i < c->changes; i++) {
		unsigned int n = i % c->nr_fds;
		bool level = i / c->nr_fds % 2;
		int ret;

		ret = kq_mod_mode(c->q, c->fd[n], EPOLLIN,
				  level ? KEVENT_LEVEL : KEVENT_EDGE, n);
		/* What was taken back has its slot until that is claimed. */
		if (ret != 1 && (level || ret != -ENOSPC))
			c->failed++;
	}
	return NULL;
}

TEST_F_TIMEOUT(level, changes_places_with_edge_under_fire, 60)
{
	struct flood f = {
		.fd = self->efd, .nr_fds = 4, .writes = FLOOD,
	};
	struct changer c = {
		.q = &self->q, .fd = self->efd, .nr_fds = 4, .changes = 1000,
	};
	struct ukevent evs[2 * THRIFTY_BATCH];
	__s64 last = now_ns();
	unsigned int calls = 0;
	__u64 sum = 0;

	for (int i = 0; i < 4; i++)
		add(i);
	ASSERT_EQ(0, flood_start(&f));
	ASSERT_EQ(0, pthread_create(&c.thread, NULL, changer_fn, &c));
	while (sum < FLOOD) {
		int nr = collect_thriftily(&self->q, evs, &calls);

		ASSERT_LE(0, nr);
		for (int i = 0; i < nr; i++)
			sum += drain_eventfd(evs[i].ident);
		if (nr)
			last = now_ns();
		else
			kq_getevents(&self->q, NULL, 1, 0, 1);
		ASSERT_LT(now_ns() - last, PATIENCE_MS * NSEC_PER_MSEC)
			TH_LOG("%llu of %d came", sum, FLOOD);
	}
	pthread_join(f.thread, NULL);
	pthread_join(c.thread, NULL);
	EXPECT_EQ(FLOOD, sum);
	EXPECT_EQ(0, c.failed);
	want_rest(&self->q);
}

/*
 * A ring of one slot
 */

#define MANY 3000

FIXTURE(many) {
	struct kq q;
	int fd[MANY];
	struct ukevent evs[MANY];
};

FIXTURE_SETUP(many)
{
	struct rlimit lim = { MANY + 100, MANY + 100 };
	struct rlimit old;

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	if (old.rlim_cur < lim.rlim_cur) {
		if (lim.rlim_max < old.rlim_max)
			lim.rlim_max = old.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &lim))
			SKIP(return, "not allowed %d descriptors", MANY);
	}
	if (!kq_setup(_metadata, &self->q, 1))
		return;
	for (int i = 0; i < MANY; i++) {
		self->fd[i] = open_eventfd();
		ASSERT_LE(0, self->fd[i]);
		self->evs[i] = kq_mode_change(KEVENT_OP_ADD, self->fd[i],
					      EPOLLIN, KEVENT_LEVEL, i);
	}
	ASSERT_EQ(MANY, sys_kevent_ctl(self->q.fd, self->evs, MANY, 0));
	EXPECT_EQ(1, self->q.map.ring->slots);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
}

FIXTURE_TEARDOWN(many)
{
	kq_close(&self->q);
}

TEST_F_TIMEOUT(many, sources_need_no_slots, 120)
{
	const int step = 97;
	int ready = 0, nr;

	for (int lap = 0; lap < 3; lap++) {
		ready = 0;
		for (int i = lap; i < MANY; i += step, ready++)
			signal_eventfd(self->fd[i]);
		nr = kq_getevents(&self->q, self->evs, 1, MANY, PATIENCE_MS);
		ASSERT_EQ(ready, nr);
		for (int i = 0; i < nr; i++) {
			EXPECT_EQ(lap, self->evs[i].user_data % step);
			EXPECT_EQ(self->fd[self->evs[i].user_data],
				  self->evs[i].ident);
			EXPECT_EQ(1, drain_eventfd(self->evs[i].ident));
		}
		want_rest(&self->q);
	}
}

TEST_F_TIMEOUT(many, sources_take_turns, 120)
{
	static int seen[MANY];
	int total = 0;

	for (int i = 0; i < MANY; i++)
		signal_eventfd(self->fd[i]);
	for (int lap = 1; lap <= 2; lap++) {
		while (total < lap * MANY) {
			int max = lap * MANY - total;
			int nr;

			max = max < 64 ? max : 64;
			nr = kq_getevents(&self->q, self->evs, 1, max,
					  PATIENCE_MS);
			ASSERT_EQ(max, nr);
			total += nr;
			for (int i = 0; i < nr; i++)
				seen[self->evs[i].user_data]++;
		}
		for (int i = 0; i < MANY; i++) {
			ASSERT_EQ(lap, seen[i])
				TH_LOG("source %d", i);
		}
	}
}

TEST_F_TIMEOUT(many, sources_can_be_waited_for_all_together, 120)
{
	__s64 start;

	for (int i = 1; i < MANY; i++)
		signal_eventfd(self->fd[i]);
	start = now_ns();
	EXPECT_EQ(MANY - 1, kq_getevents(&self->q, self->evs, MANY, MANY,
					 MOMENT_MS));
	EXPECT_LE(MOMENT_MS * NSEC_PER_MSEC, now_ns() - start);
	signal_eventfd(self->fd[0]);
	EXPECT_EQ(MANY, kq_getevents(&self->q, self->evs, MANY, MANY,
				     PATIENCE_MS));
	EXPECT_EQ(MANY, kq_getevents(&self->q, NULL, MANY, 0, PATIENCE_MS));
}

TEST_F_TIMEOUT(many, sources_leave_the_slot_to_the_ring, 120)
{
	int edge = open_eventfd(), more = open_eventfd();
	struct ukevent evs[2];

	for (int i = 0; i < MANY; i++)
		signal_eventfd(self->fd[i]);
	ASSERT_EQ(1, kq_add(&self->q, edge, EPOLLIN, MANY));
	EXPECT_EQ(-ENOSPC, kq_add(&self->q, more, EPOLLIN, MANY + 1));
	EXPECT_EQ(1, add_level(&self->q, more, MANY + 1));
	for (int i = 0; i < 10; i++) {
		signal_eventfd(edge);
		if (i % 2) {
			want_event(&self->q, BY_RING, edge, EPOLLIN, EPOLLIN,
				   MANY);
			continue;
		}
		ASSERT_EQ(2, kq_getevents(&self->q, evs, 0, 2, 0));
		EXPECT_EQ(1, count_mode(evs, 2, KEVENT_EDGE));
	}
	EXPECT_FALSE(kevent_ring_flags(&self->q.map) & KEVENT_RING_OVERFLOW);
}

TEST_F_TIMEOUT(many, sources_that_are_ready_are_closed, 120)
{
	for (int i = 0; i < MANY; i++)
		signal_eventfd(self->fd[i]);
	ASSERT_EQ(64, kq_getevents(&self->q, self->evs, 1, 64, PATIENCE_MS));
	for (int i = 0; i < MANY; i++)
		if (i != 5)
			close(self->fd[i]);
	ASSERT_EQ(1, kq_getevents(&self->q, self->evs, 1, 64, PATIENCE_MS));
	EXPECT_EQ(5, self->evs[0].user_data);
	close(self->fd[5]);
	want_rest(&self->q);
}

/* To be of the other kind takes a slot, or gives one back. */
TEST_F(level, takes_a_slot_when_it_becomes_edge)
{
	struct kq q;

	ASSERT_EQ(0, kq_open(&q, 1));
	signal_eventfd(self->efd[1]);
	ASSERT_EQ(1, kq_add(&q, self->efd[0], EPOLLIN, 0));
	ASSERT_EQ(1, add_level(&q, self->efd[1], 1));
	EXPECT_EQ(-ENOSPC, kq_mod(&q, self->efd[1], EPOLLOUT, 10));
	/* It is what it was. */
	want_level(&q, self->efd[1], 1);
	want_level(&q, self->efd[1], 1);
	want_none(&q, BY_RING);

	/* An exchange */
	ASSERT_EQ(1, mod_level(&q, self->efd[0], 20));
	ASSERT_EQ(1, kq_mod(&q, self->efd[1], EPOLLIN, 21));
	EXPECT_EQ(-ENOSPC, kq_mod(&q, self->efd[0], EPOLLIN, 30));
	want_event(&q, BY_RING, self->efd[1], EPOLLIN, EPOLLIN, 21);
	want_none(&q, BY_SYSCALL);
	signal_eventfd(self->efd[0]);
	want_level(&q, self->efd[0], 20);

	/* An edge registration that becomes level with an event in the ring */
	signal_eventfd(self->efd[1]);
	ASSERT_EQ(1, mod_level(&q, self->efd[1], 41));
	want_none(&q, BY_RING);
	ASSERT_EQ(1, kq_mod(&q, self->efd[0], EPOLLIN, 40));
	want_event(&q, BY_RING, self->efd[0], EPOLLIN, EPOLLIN, 40);
	kq_close(&q);
}

/*
 * Several who collect
 */

#define WRITES 6000
#define SOURCES 8
#define MAX_COLLECTORS 4
#define BATCH 3

/* Half of the sources are level-triggered, the others edge-triggered. */
struct crowd {
	const struct kq *q;
	const int *fd;
	__u64 sum;
	int wrong;
	int stop;
};

enum collects {
	NOBODY,
	BY_CALL,		/* kevent_getevents() and nothing else */
	BY_HEADER,		/* the ring, and a call if the header says so */
	BY_HEADER_ALONE,	/* never sleeps, so the header must be right */
};

struct collector {
	struct crowd *crowd;
	enum collects how;
	pthread_t thread;
};

static int collect_some(struct kq *q, enum collects how, struct ukevent *evs)
{
	int nr = 0, more = 0;

	if (how == BY_CALL)
		return kq_getevents(q, evs, 1, BATCH, MOMENT_MS);
	nr = kq_collect(q, BY_RING, evs, BATCH);
	if (kevent_ring_flags(&q->map))
		more = kq_getevents(q, evs + nr, 0, BATCH, 0);
	if (more < 0)
		return more;
	if (!nr && !more) {
		if (how == BY_HEADER_ALONE)
			sched_yield();
		else
			more = kq_getevents(q, NULL, 1, 0, MOMENT_MS);
		return more < 0 ? more : 0;
	}
	return nr + more;
}

static void *collector_fn(void *arg)
{
	struct collector *c = arg;
	struct crowd *crowd = c->crowd;
	struct kq q = *crowd->q;	/* with a cursor of its own */
	struct ukevent evs[2 * BATCH];

	while (!__atomic_load_n(&crowd->stop, __ATOMIC_ACQUIRE)) {
		int nr = collect_some(&q, c->how, evs);

		if (nr < 0)
			__atomic_fetch_add(&crowd->wrong, 1, __ATOMIC_RELAXED);
		for (int i = 0; i < nr; i++) {
			__u64 n = evs[i].user_data;

			if (n >= SOURCES || evs[i].ident != crowd->fd[n] ||
			    !fd_value_ok(evs[i].events, EPOLLIN, EPOLLIN)) {
				__atomic_fetch_add(&crowd->wrong, 1,
						   __ATOMIC_RELAXED);
				continue;
			}
			__atomic_fetch_add(&crowd->sum,
					   drain_eventfd(crowd->fd[n]),
					   __ATOMIC_RELEASE);
		}
	}
	return NULL;
}

FIXTURE(collectors) {
	struct kq q;
	int fd[SOURCES];
};

FIXTURE_VARIANT(collectors) {
	enum collects how[MAX_COLLECTORS];
	bool level_only;
};

FIXTURE_VARIANT_ADD(collectors, two_by_call) {
	.how = { BY_CALL, BY_CALL }, .level_only = true,
};

FIXTURE_VARIANT_ADD(collectors, four_by_call) {
	.how = { BY_CALL, BY_CALL, BY_CALL, BY_CALL }, .level_only = true,
};

FIXTURE_VARIANT_ADD(collectors, one_by_header_alone) {
	.how = { BY_HEADER_ALONE }, .level_only = true,
};

FIXTURE_VARIANT_ADD(collectors, one_by_header_alone_of_both_kinds) {
	.how = { BY_HEADER_ALONE },
};

FIXTURE_VARIANT_ADD(collectors, two_by_header_of_both_kinds) {
	.how = { BY_HEADER, BY_HEADER },
};

FIXTURE_VARIANT_ADD(collectors, by_call_and_by_header_of_both_kinds) {
	.how = { BY_CALL, BY_HEADER, BY_CALL, BY_HEADER },
};

FIXTURE_SETUP(collectors)
{
	if (!kq_setup(_metadata, &self->q, SOURCES))
		return;
	for (int i = 0; i < SOURCES; i++) {
		bool level = variant->level_only || i < SOURCES / 2;
		__u32 mode = level ? KEVENT_LEVEL : KEVENT_EDGE;

		self->fd[i] = open_eventfd();
		ASSERT_LE(0, self->fd[i]);
		ASSERT_EQ(1, kq_add_mode(&self->q, self->fd[i], EPOLLIN,
					 mode, i));
	}
}

FIXTURE_TEARDOWN(collectors)
{
	kq_close(&self->q);
}

/* What is written is read, because an event says that it is there. */
TEST_F_TIMEOUT(collectors, miss_nothing, 60)
{
	struct crowd crowd = { .q = &self->q, .fd = self->fd };
	struct flood f[2] = {
		{ .fd = self->fd, .nr_fds = SOURCES, .writes = WRITES / 2 },
		{ .fd = self->fd, .nr_fds = SOURCES, .writes = WRITES / 2 },
	};
	struct collector c[MAX_COLLECTORS];
	__u64 sum = 0, now;
	__s64 last;
	int nr = 0;

	for (; nr < MAX_COLLECTORS && variant->how[nr] != NOBODY; nr++) {
		c[nr].crowd = &crowd;
		c[nr].how = variant->how[nr];
		ASSERT_EQ(0, pthread_create(&c[nr].thread, NULL, collector_fn,
					    &c[nr]));
	}
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(0, flood_start(&f[i]));
	for (int i = 0; i < 2; i++)
		pthread_join(f[i].thread, NULL);
	last = now_ns();
	do {
		sleep_ms(1);
		now = __atomic_load_n(&crowd.sum, __ATOMIC_ACQUIRE);
		if (now != sum)
			last = now_ns();
		sum = now;
	} while (sum < WRITES && now_ns() - last < PATIENCE_MS * NSEC_PER_MSEC);
	__atomic_store_n(&crowd.stop, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < nr; i++)
		pthread_join(c[i].thread, NULL);
	EXPECT_EQ(WRITES, crowd.sum);
	EXPECT_EQ(0, crowd.wrong);
	/* Edges can tell of what was read before; the call finds that out. */
	want_rest(&self->q);
}

/*
 * No event of a registration comes after it was deleted, or its descriptor
 * closed.  Registrations have increasing numbers; those below @deleted are
 * deleted.
 */
struct ghosts {
	struct kq *q;
	__u64 deleted;
	__u64 seen;
	int stop;
	int wrong;
};

static void *ghost_hunter_fn(void *arg)
{
	struct ghosts *g = arg;
	struct ukevent evs[4];

	while (!__atomic_load_n(&g->stop, __ATOMIC_ACQUIRE)) {
		__u64 deleted = __atomic_load_n(&g->deleted, __ATOMIC_ACQUIRE);
		int nr = kq_getevents(g->q, evs, 1, 4, 5);

		if (nr < 0)
			__atomic_fetch_add(&g->wrong, 1, __ATOMIC_RELAXED);
		for (int i = 0; i < nr; i++)
			if (evs[i].user_data < deleted)
				__atomic_fetch_add(&g->wrong, 1,
						   __ATOMIC_RELAXED);
		if (nr > 0)
			__atomic_fetch_add(&g->seen, nr, __ATOMIC_RELAXED);
	}
	return NULL;
}

TEST_F_TIMEOUT(level, deleted_sources_are_reported_to_nobody, 60)
{
	const int rounds = 1200;
	struct ghosts g = { .q = &self->q };
	pthread_t hunters[2];
	int file;

	signal_eventfd(self->efd[0]);
	file = dup(self->efd[0]);
	ASSERT_LE(0, file);
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&hunters[i], NULL, ghost_hunter_fn,
					    &g));
	for (int i = 0; i < rounds; i++) {
		__u64 seen = __atomic_load_n(&g.seen, __ATOMIC_RELAXED);
		int fd = dup(file);

		ASSERT_LE(0, fd);
		ASSERT_EQ(1, add_level(&self->q, fd, i));
		signal_eventfd(file);
		/* Sometimes it is deleted before it is seen, mostly not. */
		for (int j = 0; j < 1000 && i % 4 && seen ==
		     __atomic_load_n(&g.seen, __ATOMIC_RELAXED); j++)
			sched_yield();
		if (i % 2)
			ASSERT_EQ(1, kq_del(&self->q, fd));
		ASSERT_EQ(0, close(fd));
		__atomic_store_n(&g.deleted, i + 1, __ATOMIC_RELEASE);
	}
	__atomic_store_n(&g.stop, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < 2; i++)
		pthread_join(hunters[i], NULL);
	EXPECT_EQ(0, g.wrong);
	EXPECT_LT(0, g.seen);
	want_rest(&self->q);
}

/*
 * Anything in any order, against a model
 */

#define MODEL_LEVELS 12
#define MODEL_EDGES 4
#define MODEL_NR (MODEL_LEVELS + MODEL_EDGES)
#define MODEL_OPS 4000

struct model_source {
	int fd;
	bool registered;
	bool disabled;
	bool readable;
	bool pending;		/* edge: it has an event */
	__u64 udata;
	int passed;		/* how often others were reported meanwhile */
};

struct model {
	struct model_source s[MODEL_NR];
	__u32 last;		/* the mode of the event before */
	__u64 udata;
};

static bool model_is_level(int i)
{
	return i < MODEL_LEVELS;
}

static bool model_ready(const struct model *m, int i)
{
	const struct model_source *s = &m->s[i];

	if (!s->registered || s->disabled)
		return false;
	return model_is_level(i) ? s->readable : s->pending;
}

static __u32 model_set(const struct model *m, bool level)
{
	__u32 set = 0;

	for (int i = 0; i < MODEL_NR; i++)
		if (model_is_level(i) == level && model_ready(m, i))
			set |= 1U << i;
	return set;
}

/* Whether the kernel may look at a level-triggered source and find it is not so */
static bool model_has_stale(const struct model *m)
{
	for (int i = 0; i < MODEL_LEVELS; i++)
		if (m->s[i].registered && !m->s[i].disabled && !m->s[i].readable)
			return true;
	return false;
}

/* What a change leaves of the registration */
static void model_look(struct model *m, int i)
{
	m->s[i].passed = 0;
	m->s[i].pending = m->s[i].readable && m->s[i].registered &&
			  !m->s[i].disabled;
}

static int model_change(struct model *m, const struct kq *q, int i, __u16 op)
{
	struct ukevent change = kq_mode_change(op, m->s[i].fd, EPOLLIN,
					       model_is_level(i) ?
					       KEVENT_LEVEL : KEVENT_EDGE, 0);

	if (op == KEVENT_OP_ADD || op == KEVENT_OP_MOD) {
		m->s[i].udata = ++m->udata << 8 | i;
		change.user_data = m->s[i].udata;
	} else {
		change = kq_change(KEVENT_SOURCE_FD, op, m->s[i].fd, 0);
	}
	return kq_apply(q, change);
}

/* What came has to be what the model says, and in turn. */
static void model_collect(struct __test_metadata *_metadata, struct model *m,
			  const struct kq *q, int max)
{
	__u32 level = model_set(m, true), edge = model_set(m, false);
	int there = __builtin_popcount(level | edge);
	struct ukevent evs[MODEL_NR + 4];
	int nr = kq_getevents(q, evs, 0, max, 0);

	ASSERT_EQ(there < max ? there : max, nr);
	for (int i = 0; i < nr; i++) {
		int n = evs[i].user_data & 0xff;
		__u32 mode;

		ASSERT_LT(n, MODEL_NR);
		mode = model_is_level(n) ? KEVENT_LEVEL : KEVENT_EDGE;
		ASSERT_EQ(m->s[n].udata, evs[i].user_data);
		ASSERT_EQ(m->s[n].fd, evs[i].ident);
		ASSERT_EQ(EPOLLIN, evs[i].events);
		ASSERT_EQ(mode, evs[i].flags);
		ASSERT_TRUE((level | edge) & 1U << n)
			TH_LOG("source %d is not ready, or came twice", n);
		/* One that is looked at and not so has had its turn. */
		if (level && edge &&
		    (mode == KEVENT_LEVEL || !model_has_stale(m))) {
			ASSERT_NE(m->last, mode)
				TH_LOG("event %d of %d", i, nr);
		}
		m->last = mode;
		m->s[n].pending = false;
		if (mode == KEVENT_EDGE) {
			edge &= ~(1U << n);
			continue;
		}
		level &= ~(1U << n);
		for (int j = 0; j < MODEL_LEVELS; j++)
			m->s[j].passed += model_ready(m, j);
		m->s[n].passed = 0;
	}
	for (int i = 0; i < MODEL_LEVELS; i++) {
		ASSERT_LE(m->s[i].passed, MODEL_LEVELS)
			TH_LOG("source %d was passed over", i);
	}
	if (!nr)
		ASSERT_EQ(0, kevent_ring_flags(&q->map));
}

TEST_F_TIMEOUT(level, agrees_with_the_model, 60)
{
	__u64 rnd = random_seed();
	struct model m = { };
	struct kq q;

	/* Cancelled events take slots beside those of registrations. */
	ASSERT_EQ(0, kq_open(&q, 4096));
	for (int i = 0; i < MODEL_NR; i++) {
		m.s[i].fd = open_eventfd();
		ASSERT_LE(0, m.s[i].fd);
	}
	for (int op = 0; op < MODEL_OPS; op++) {
		int i = next_random(&rnd) % MODEL_NR;
		struct model_source *s = &m.s[i];
		int ret = 1;

		switch (next_random(&rnd) % 16) {
		case 0 ... 4:
			signal_eventfd(s->fd);
			s->readable = true;
			s->pending = s->registered && !s->disabled;
			break;
		case 5 ... 6:
			/* An edge that is not so any more is left out. */
			if (s->pending && !model_is_level(i))
				break;
			drain(s->fd);
			s->readable = false;
			s->passed = 0;
			break;
		case 7:
			ret = model_change(&m, &q, i, s->registered ?
					   KEVENT_OP_DEL : KEVENT_OP_ADD);
			s->registered = !s->registered;
			s->disabled = false;
			model_look(&m, i);
			break;
		case 8:
			if (!s->registered)
				break;
			ret = model_change(&m, &q, i, KEVENT_OP_MOD);
			s->disabled = false;
			model_look(&m, i);
			break;
		case 9:
			if (!s->registered)
				break;
			ret = model_change(&m, &q, i, s->disabled ?
					   KEVENT_OP_ENABLE :
					   KEVENT_OP_DISABLE);
			s->disabled = !s->disabled;
			model_look(&m, i);
			break;
		case 10:
			ret = kq_getevents(&q, NULL, MODEL_NR, 0, 0);
			ASSERT_LE(ret, MODEL_NR);
			ASSERT_LE(__builtin_popcount(model_set(&m, true) |
						     model_set(&m, false)),
				  ret);
			ret = 1;
			break;
		default:
			model_collect(_metadata, &m, &q,
				      1 + next_random(&rnd) % (MODEL_NR + 4));
			break;
		}
		ASSERT_EQ(1, ret)
			TH_LOG("operation %d", op);
		/* Of all that it could say wrongly, this must not be. */
		ASSERT_TRUE(!model_set(&m, true) || level_ready(&q))
			TH_LOG("operation %d: the header does not say so", op);
		ASSERT_FALSE(kevent_ring_flags(&q.map) & KEVENT_RING_OVERFLOW);
	}
	kq_close(&q);
}

TEST_HARNESS_MAIN
