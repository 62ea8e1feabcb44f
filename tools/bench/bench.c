// SPDX-License-Identifier: MIT
/*
 * What kevent, epoll, io_uring and Linux AIO cost, in guest instructions.
 *
 *	kevent-bench [--idle MAX] [--reps N] [GROUP ...]
 *
 * Runs as root in a guest with one CPU under QEMU's -icount shift=0; scripts/bench
 * does that.  The groups of rows are at the end of this file; without any, all but
 * "marks" and "where" are measured.  Prints one JSON object a row: name, peer, unit,
 * and min, median, mode and hits, how many of the repetitions gave the mode.  What
 * was measured in a batch, and what was subtracted from it, is given per event, so it
 * need not be an integer.
 *
 * Outliers are the timer tick, RCU and the like, so it is the minimum that is to
 * be compared.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/kevent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

#ifndef IORING_TIMEOUT_ABS
#define IORING_TIMEOUT_ABS (1U << 0)
#endif

#define REPS_MAX 1000
#define WARM_UP 10
#define BATCH_MAX 512

struct source *sources;
u64 one = 1, scratch;

static const struct peer *const peers[] = {
	&kevent_ring, &kevent_call, &kevent_level, &epoll_level, &epoll_edge, &uring_default,
	&uring_defer, &aio_poll,
};

static const unsigned int batches[] = { 1, 8, 64, 512 };

static unsigned int reps = 200, nr_sources, idle_max = 10000;

void die(const char *what, long error)
{
	fflush(stdout);
	fprintf(stderr, "kevent-bench: %s: %ld\n", what, error);
	exit(1);
}

/*
 * Measuring
 */

/* Of the last row: each repetition, and the smallest of them */
static u32 samples[REPS_MAX], user[REPS_MAX], least;
/* What it takes to measure nothing, and by COUNTED() of peers.c: all, and inside */
static u32 bracket;
static double counted_all, counted_inside;

/*
 * Executes @what between two looks at the clock, as often as is asked for, with
 * @before and @after beside it.
 */
#define MEASURE(before, what, after) do {					\
	for (unsigned int rep_ = 0; rep_ < reps + WARM_UP; rep_++) {		\
		u32 start_, end_;						\
										\
		before;								\
		start_ = now();							\
		what;								\
		end_ = now();							\
		samples[rep_ < WARM_UP ? 0 : rep_ - WARM_UP] =			\
			end_ - start_ - bracket;				\
		after;								\
	}									\
	least = minimum(samples);						\
} while (0)

static u32 minimum(const u32 *array)
{
	u32 min = array[0];

	for (unsigned int i = 1; i < reps; i++)
		if (array[i] < min)
			min = array[i];
	return min;
}

static int compare(const void *a, const void *b)
{
	u32 x = *(const u32 *)a, y = *(const u32 *)b;

	return x < y ? -1 : x > y;
}

/* Prints a row, of (sample - @base) / @per. */
static void row_of(const u32 *array, const char *peer, const char *name, int number,
		   const char *unit, double base, double per)
{
	static u32 sorted[REPS_MAX];
	unsigned int hits = 0;
	u32 mode = 0;

	memcpy(sorted, array, reps * sizeof(*sorted));
	qsort(sorted, reps, sizeof(*sorted), compare);
	for (unsigned int i = 0, run = 0; i < reps; i++) {
		run = i && sorted[i] == sorted[i - 1] ? run + 1 : 1;
		if (run > hits) {
			hits = run;
			mode = sorted[i];
		}
	}
	printf("{\"name\": \"%s", name);
	if (number >= 0)
		printf(".%d", number);
	printf("\", \"peer\": \"%s\", \"unit\": \"%s\", \"min\": %.2f, \"median\": %.2f, "
	       "\"mode\": %.2f, \"hits\": %u}\n", peer, unit, (sorted[0] - base) / per,
	       (sorted[reps / 2] - base) / per, (mode - base) / per, hits);
	fflush(stdout);
}

static void row(const char *peer, const char *name, int number, const char *unit, double base,
		double per)
{
	row_of(samples, peer, name, number, unit, base, per);
}

/* A row that is always the same. */
static void fixed(const char *peer, const char *name, int number, const char *unit, double value)
{
	printf("{\"name\": \"%s", name);
	if (number >= 0)
		printf(".%d", number);
	printf("\", \"peer\": \"%s\", \"unit\": \"%s\", \"min\": %.3f, \"median\": %.3f, "
	       "\"mode\": %.3f, \"hits\": 1}\n", peer, unit, value, value, value);
	fflush(stdout);
}

/*
 * Sources
 */

static void tcp_pair(int fds[2])
{
	static int listener = -1;
	static struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t size = sizeof(address);
	int yes = 1;

	if (listener < 0) {
		listener = socket(AF_INET, SOCK_STREAM, 0);
		address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		must(!bind(listener, (void *)&address, size) && !listen(listener, 1024) &&
		     !getsockname(listener, (void *)&address, &size), "listen", errno);
	}
	fds[1] = socket(AF_INET, SOCK_STREAM, 0);
	must(!connect(fds[1], (void *)&address, size), "connect", errno);
	fds[0] = accept(listener, NULL, NULL);
	must(fds[0] >= 0, "accept", errno);
	for (int i = 0; i < 2; i++) {
		must(!setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes)),
		     "TCP_NODELAY", errno);
		must(!fcntl(fds[i], F_SETFL, O_NONBLOCK), "O_NONBLOCK", errno);
	}
}

/* Makes sources of a kind until there are @n. */
static void make_sources(enum kind kind, unsigned int n)
{
	for (; nr_sources < n; nr_sources++) {
		int fds[2];

		if (kind == EVENTFD) {
			fds[0] = fds[1] = eventfd(0, EFD_NONBLOCK);
			must(fds[0] >= 0, "eventfd", errno);
		} else if (kind == PIPE) {
			must(!pipe2(fds, O_NONBLOCK), "pipe", errno);
		} else if (kind == SOCKET) {
			must(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds),
			     "socketpair", errno);
		} else {
			tcp_pair(fds);
		}
		sources[nr_sources].r = fds[0];
		sources[nr_sources].w = fds[1];
	}
}

static void close_sources(void)
{
	while (nr_sources) {
		struct source *source = &sources[--nr_sources];

		if (source->w != source->r)
			close(source->w);
		close(source->r);
	}
}

/* Collects what there is. */
static void drain(const struct peer *peer)
{
	while (peer->look(COLLECT_MAX))
		;
}

/* Everything is collected, nothing is ready, and all of the first @n are watched. */
static void settle(const struct peer *peer, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		read_from(i);
	drain(peer);
	if (peer->one_shot)
		peer->add(0, n);
}

static void write_all(unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		write_to(i);
}

static void read_all(unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		read_from(i);
}

static const char *const kinds[] = { "eventfd", "pipe", "socket", "tcp" };

#define ROOM 64

/*
 * Lets events go around a ring with room for so many, as they have in a program
 * that has been running for a while.
 */
static void go_around(const struct peer *peer, unsigned int n, unsigned int room)
{
	for (unsigned int done = 0; done < 2 * room; done += n) {
		write_all(n);
		settle(peer, n);
	}
}

/* Opens a back-end, and registers @n new sources. */
static bool begin(const struct peer *peer, enum kind kind, unsigned int n)
{
	unsigned int room = n < ROOM ? ROOM : n;

	if (!peer->open(room))
		return false;
	make_sources(kind, n);
	peer->add(0, n);
	go_around(peer, n, room);
	return true;
}

static void end(const struct peer *peer)
{
	peer->close();
	close_sources();
}

/*
 * Groups of rows
 */

static void group_empty(void)
{
	MEASURE(, , );
	row("none", "empty", -1, "insns", 0, 1);
	MEASURE(, call3(SYS_getppid, 0, 0, 0), );
	row("none", "getppid", -1, "insns", 0, 1);
}

/* What programs that do not use kevent do. */
static void group_others(void)
{
	struct pollfd fds[64];
	struct epoll_event event = { .events = EPOLLIN };
	int fd = -1, other, ep;
	char name[64];

	for (enum kind kind = EVENTFD; kind <= TCP; kind++) {
		make_sources(kind, 1);
		MEASURE(, write_to(0), read_from(0));
		snprintf(name, sizeof(name), "others.write.%s", kinds[kind]);
		row("none", name, -1, "insns", 0, 1);
		MEASURE(write_to(0), read_from(0), );
		snprintf(name, sizeof(name), "others.read.%s", kinds[kind]);
		row("none", name, -1, "insns", 0, 1);
		close_sources();
	}

	MEASURE(, fd = call3(SYS_eventfd2, 0, 0, 0), close(fd));
	row("none", "others.make.eventfd", -1, "insns", 0, 1);
	MEASURE(fd = eventfd(0, 0), call3(SYS_close, fd, 0, 0), );
	row("none", "others.close.eventfd", -1, "insns", 0, 1);
	MEASURE(fd = socket(AF_UNIX, SOCK_STREAM, 0), call3(SYS_close, fd, 0, 0), );
	row("none", "others.close.socket", -1, "insns", 0, 1);
	other = eventfd(0, 0);
	MEASURE(fd = dup(other), call3(SYS_close, fd, 0, 0), );
	row("none", "others.close.dup", -1, "insns", 0, 1);
	fd = dup(other);
	MEASURE(, call3(SYS_dup2, other, fd, 0), );
	row("none", "others.dup2", -1, "insns", 0, 1);
	MEASURE(fd = dup(other), call3(SYS_close_range, fd, fd, 0), );
	row("none", "others.close_range", -1, "insns", 0, 1);

	make_sources(EVENTFD, 64);
	for (int i = 0; i < 64; i++)
		fds[i] = (struct pollfd) { .fd = sources[i].r, .events = POLLIN };
	MEASURE(, call3(SYS_poll, (long)fds, 1, 0), );
	row("none", "others.poll", 1, "insns", 0, 1);
	MEASURE(, call3(SYS_poll, (long)fds, 64, 0), );
	row("none", "others.poll", 64, "insns", 0, 1);

	ep = epoll_create1(0);
	epoll_ctl(ep, EPOLL_CTL_ADD, sources[1].r, &event);
	MEASURE(, call4(SYS_epoll_ctl, ep, EPOLL_CTL_ADD, sources[0].r, (long)&event),
		epoll_ctl(ep, EPOLL_CTL_DEL, sources[0].r, NULL));
	row("none", "others.epoll.add", -1, "insns", 0, 1);
	MEASURE(epoll_ctl(ep, EPOLL_CTL_ADD, sources[0].r, &event),
		call4(SYS_epoll_ctl, ep, EPOLL_CTL_DEL, sources[0].r, 0), );
	row("none", "others.epoll.del", -1, "insns", 0, 1);
	epoll_ctl(ep, EPOLL_CTL_ADD, sources[0].r, &event);
	MEASURE(, call4(SYS_epoll_ctl, ep, EPOLL_CTL_MOD, sources[0].r, (long)&event), );
	row("none", "others.epoll.modify", -1, "insns", 0, 1);
	MEASURE(, call4(SYS_epoll_wait, ep, (long)&event, 1, 0), );
	row("none", "others.epoll.wait", 0, "insns", 0, 1);
	MEASURE(, write_to(0), read_from(0); call4(SYS_epoll_wait, ep, (long)&event, 1, 0));
	row("none", "others.epoll.write", -1, "insns", 0, 1);
	write_to(0);
	MEASURE(, call4(SYS_epoll_wait, ep, (long)&event, 1, 0), );
	row("none", "others.epoll.wait", 1, "insns", 0, 1);
	MEASURE(fd = eventfd(0, 0); epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event),
		call3(SYS_close, fd, 0, 0), );
	row("none", "others.epoll.close", -1, "insns", 0, 1);
	close(ep);
	close(other);
	close_sources();
}

/* What a watcher adds to a write: to one that makes ready, and to one that does not. */
static void group_wake(void)
{
	for (enum kind kind = EVENTFD; kind <= TCP; kind++) {
		u32 plain, again;
		char name[64];

		make_sources(kind, 1);
		MEASURE(, write_to(0), read_from(0));
		plain = least;
		snprintf(name, sizeof(name), "write.%s", kinds[kind]);
		row("none", name, -1, "insns", 0, 1);
		MEASURE(write_to(0), write_to(0), read_from(0); read_from(0));
		again = least;
		snprintf(name, sizeof(name), "write.again.%s", kinds[kind]);
		row("none", name, -1, "insns", 0, 1);
		close_sources();

		for (unsigned int i = 0; i < ARRAY_SIZE(peers); i++) {
			const struct peer *peer = peers[i];

			if (!begin(peer, kind, 1))
				continue;
			MEASURE(, write_to(0), settle(peer, 1));
			snprintf(name, sizeof(name), "wake.%s", kinds[kind]);
			row(peer->name, name, -1, "insns", plain, 1);
			if (!peer->one_shot) {
				MEASURE(write_to(0), write_to(0), read_from(0); settle(peer, 1));
				snprintf(name, sizeof(name), "merge.%s", kinds[kind]);
				row(peer->name, name, -1, "insns", again, 1);
			}
			end(peer);
		}
	}
}

static void collect_rows(const struct peer *peer)
{
	double first = 0;

	for (unsigned int i = 0; i < ARRAY_SIZE(batches); i++) {
		unsigned int n = batches[i], rep = 0;

		MEASURE(write_all(n), peer->collect(n), settle(peer, n));
		row(peer->name, "collect", n, "insns/event", 0, n);
		if (n == 1)
			first = least;
		else if (i == ARRAY_SIZE(batches) - 1)
			row(peer->name, "collect.further", -1, "insns/event", first, n - 1);

		MEASURE(write_all(n); spent = (struct spent) {}, peer->collect_split(n),
			unsigned int at = rep < WARM_UP ? 0 : rep - WARM_UP;
			double all = samples[at] - spent.calls * counted_all;
			double kernel = spent.kernel - spent.calls * counted_inside;

			user[at] = all - kernel + 0.5;
			samples[at] = kernel + 0.5;
			rep++;
			settle(peer, n));
		row_of(user, peer->name, "collect.user", n, "insns/event", 0, n);
		row(peer->name, "collect.kernel", n, "insns/event", 0, n);
		fixed(peer->name, "syscalls", n, "calls/event", (double)spent.calls / n);
	}
}

static void group_collect(void)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(peers); i++) {
		if (!begin(peers[i], EVENTFD, BATCH_MAX))
			continue;
		collect_rows(peers[i]);
		end(peers[i]);
	}
}

/* What an event costs beyond the plain write, from there until it is collected. */
static void path_rows(const struct peer *peer, const char *name, unsigned int n, u32 plain,
		      int number)
{
	if (peer->one_shot)
		MEASURE(, write_all(n); peer->collect(n); read_all(n); peer->add(0, n), );
	else
		MEASURE(, write_all(n); peer->collect(n), settle(peer, n));
	row(peer->name, name, number, "insns/event", plain, n);
}

static u32 plain_writes(unsigned int n, bool with_reads)
{
	if (with_reads)
		MEASURE(, write_all(n); read_all(n), );
	else
		MEASURE(, write_all(n), read_all(n));
	return least;
}

static void group_path(void)
{
	u32 plain[ARRAY_SIZE(batches)], with_reads[ARRAY_SIZE(batches)];

	make_sources(EVENTFD, BATCH_MAX);
	for (unsigned int i = 0; i < ARRAY_SIZE(batches); i++) {
		with_reads[i] = plain_writes(batches[i], true);
		plain[i] = plain_writes(batches[i], false);
		row("none", "path", batches[i], "insns/event", 0, batches[i]);
	}
	close_sources();
	for (unsigned int i = 0; i < ARRAY_SIZE(peers); i++) {
		const struct peer *peer = peers[i];

		if (!begin(peer, EVENTFD, BATCH_MAX))
			continue;
		for (unsigned int j = 0; j < ARRAY_SIZE(batches); j++)
			path_rows(peer, "path", batches[j],
				  peer->one_shot ? with_reads[j] : plain[j], batches[j]);
		end(peer);
	}
}

static void change_rows(const struct peer *peer, unsigned int n)
{
	MEASURE(peer->del(0, n); drain(peer), peer->add(0, n), );
	row(peer->name, "add", n, "insns/event", 0, n);
	if (peer->modify) {
		MEASURE(, peer->modify(0, n), drain(peer));
		row(peer->name, "modify", n, "insns/event", 0, n);
	}
	MEASURE(, peer->del(0, n), drain(peer); peer->add(0, n));
	row(peer->name, "delete", n, "insns/event", 0, n);
}

static void group_change(void)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(peers); i++) {
		if (peers[i] == &kevent_call || !begin(peers[i], EVENTFD, BATCH_MAX))
			continue;
		change_rows(peers[i], 1);
		change_rows(peers[i], BATCH_MAX);
		end(peers[i]);
	}
}

/*
 * Timers
 */

static u64 clock_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

#define TIMERS 64
#define FAR 1000000000000ULL

static struct ukevent timer_changes[TIMERS];
static int timerfds[TIMERS];
static struct __kernel_timespec uring_times[TIMERS];

static void kevent_timers(unsigned int n, u16 op, u64 at)
{
	for (unsigned int i = 0; i < n; i++)
		timer_changes[i] = (struct ukevent) {
			.ident = i,
			.source = KEVENT_SOURCE_TIMER,
			.op = op,
			.flags = op == KEVENT_OP_DEL ? 0 : KEVENT_EDGE,
			.fflags = op == KEVENT_OP_DEL ? 0 : KEVENT_TIMER_ABS | CLOCK_MONOTONIC,
			.data = at,
			.user_data = op == KEVENT_OP_DEL ? 0 : i,
		};
	must(kevent_ctl(timer_changes, n) == n, "timers", 0);
}

static void timerfd_arm(unsigned int n, u64 at)
{
	struct itimerspec when = {
		.it_value = { .tv_sec = at / 1000000000, .tv_nsec = at % 1000000000 },
	};

	for (unsigned int i = 0; i < n; i++)
		must(!call4(SYS_timerfd_settime, timerfds[i], TFD_TIMER_ABSTIME, (long)&when, 0),
		     "timerfd_settime", 0);
}

static void uring_timers(unsigned int n, u64 at)
{
	for (unsigned int i = 0; i < n; i++) {
		struct io_uring_sqe *sqe = uring_sqe();

		uring_times[i].tv_sec = at / 1000000000;
		uring_times[i].tv_nsec = at % 1000000000;
		sqe->opcode = IORING_OP_TIMEOUT;
		sqe->addr = (long)&uring_times[i];
		sqe->len = 1;
		sqe->timeout_flags = IORING_TIMEOUT_ABS;
		sqe->user_data = i;
	}
	uring_submit();
}

/*
 * Spins until @end, and returns how many instructions others executed meanwhile:
 * each gap between two looks at the clock that is longer than the shortest.
 */
static u32 stolen(u64 end)
{
	u32 last = now(), gaps = 0, turn = ~0U, looks = 0;
	u64 until = end - clock_ns();
	u32 begin = last;

	while (last - begin < until) {
		u32 next = now(), gap = next - last;

		if (gap < turn)
			turn = gap;
		if (gap > 100) {
			gaps += gap;
			looks++;
		}
		last = next;
	}
	return gaps - looks * turn;
}

/* So long before they expire are timers armed, and so long after that is waited. */
#define BEFORE (200 * 1000)
#define AFTER (200 * 1000)

static void fire_row(const char *peer, unsigned int n, void (*arm)(unsigned int, u64),
		     void (*clean)(unsigned int))
{
	for (unsigned int rep = 0; rep < reps; rep++) {
		u64 at = clock_ns() + BEFORE;

		arm(n, at);
		samples[rep] = stolen(at + AFTER);
		clean(n);
	}
	row(peer, "timer.fire", n, "insns/event", 0, n);
}

static void kevent_arm(unsigned int n, u64 at)
{
	kevent_timers(n, KEVENT_OP_MOD, at);
}

static void kevent_clean(unsigned int n)
{
	kevent_ring.collect(n);
}

static void timerfd_clean(unsigned int n)
{
	epoll_edge.collect(n);
	for (unsigned int i = 0; i < n; i++)
		call3(SYS_read, timerfds[i], (long)&scratch, sizeof(scratch));
}

/* An expired timeout completes with -ETIME, which look() takes for no event. */
static void uring_clean(unsigned int n)
{
	while (uring_default.look(n))
		;
}

static void group_timer(void)
{
	static const unsigned int some[] = { 1, TIMERS };

	if (kevent_ring.open(TIMERS)) {
		for (unsigned int i = 0; i < ARRAY_SIZE(some); i++) {
			unsigned int n = some[i];

			MEASURE(, kevent_timers(n, KEVENT_OP_ADD, clock_ns() + FAR),
				kevent_timers(n, KEVENT_OP_DEL, 0));
			row("kevent", "timer.add", n, "insns/event", 0, n);
			kevent_timers(n, KEVENT_OP_ADD, clock_ns() + FAR);
			MEASURE(, kevent_timers(n, KEVENT_OP_MOD, clock_ns() + FAR), );
			row("kevent", "timer.arm", n, "insns/event", 0, n);
			fire_row("kevent", n, kevent_arm, kevent_clean);
			kevent_timers(n, KEVENT_OP_DEL, 0);
		}
		kevent_ring.close();
	}

	epoll_edge.open(TIMERS);
	for (unsigned int i = 0; i < TIMERS; i++) {
		timerfds[i] = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
		sources[i].r = sources[i].w = timerfds[i];
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(some); i++) {
		unsigned int n = some[i];

		epoll_edge.add(0, n);
		MEASURE(, timerfd_arm(n, clock_ns() + FAR), );
		row("epoll edge", "timer.arm", n, "insns/event", 0, n);
		fire_row("epoll edge", n, timerfd_arm, timerfd_clean);
		epoll_edge.del(0, n);
	}
	for (unsigned int i = 0; i < TIMERS; i++)
		close(timerfds[i]);
	epoll_edge.close();

	if (uring_default.open(TIMERS)) {
		for (unsigned int i = 0; i < ARRAY_SIZE(some); i++) {
			unsigned int n = some[i];

			/* Of the past, so that they are gone again. */
			MEASURE(, uring_timers(n, 1), uring_clean(n));
			row("io_uring", "timer.past", n, "insns/event", 0, n);
			fire_row("io_uring", n, uring_timers, uring_clean);
		}
		uring_default.close();
	}
}

/*
 * What a program says to itself: kevent's user events, and what others use for it
 */

static struct ukevent triggers[BATCH_MAX];

static void change(int queue, struct ukevent *changes, unsigned int n)
{
	long done = call4(__NR_kevent_ctl, queue, (long)changes, n, 0);

	must(done == n, "kevent_ctl", done);
}

/* Counts that are triggered: registers them, and leaves in triggers[] what triggers each. */
static void add_counts(int queue)
{
	for (unsigned int i = 0; i < BATCH_MAX; i++)
		triggers[i] = (struct ukevent) {
			.ident = i,
			.source = KEVENT_SOURCE_USER,
			.op = KEVENT_OP_ADD,
			.flags = KEVENT_EDGE,
			.events = KEVENT_USER_COUNT,
			.user_data = i,
		};
	change(queue, triggers, BATCH_MAX);
	for (unsigned int i = 0; i < BATCH_MAX; i++)
		triggers[i] = (struct ukevent) {
			.ident = i,
			.source = KEVENT_SOURCE_USER,
			.op = KEVENT_OP_TRIGGER,
			.data = 1,
		};
}

static void group_trigger(void)
{
	static const unsigned int some[] = { 1, 64 };
	unsigned int n;

	if (kevent_ring.open(BATCH_MAX)) {
		add_counts(kevent_queue());
		for (unsigned int i = 0; i < ARRAY_SIZE(some); i++) {
			n = some[i];
			MEASURE(, kevent_ctl(triggers, n), kevent_ring.collect(n));
			row("kevent", "trigger", n, "insns/event", 0, n);
			MEASURE(, kevent_ctl(triggers, n); kevent_ring.collect(n), );
			row("kevent", "trigger.path", n, "insns/event", 0, n);
			MEASURE(kevent_ctl(triggers, n), kevent_ctl(triggers, n),
				kevent_ring.collect(n));
			row("kevent", "trigger.again", n, "insns/event", 0, n);
		}
		kevent_ring.close();
	}
	begin(&epoll_edge, EVENTFD, BATCH_MAX);
	for (unsigned int i = 0; i < ARRAY_SIZE(some); i++) {
		n = some[i];
		MEASURE(, write_all(n), settle(&epoll_edge, n));
		row("epoll edge", "trigger", n, "insns/event", 0, n);
		MEASURE(, write_all(n); epoll_edge.collect(n), settle(&epoll_edge, n));
		row("epoll edge", "trigger.path", n, "insns/event", 0, n);
		MEASURE(write_all(n), write_all(n), settle(&epoll_edge, n));
		row("epoll edge", "trigger.again", n, "insns/event", 0, n);
	}
	end(&epoll_edge);
	if (uring_default.open(BATCH_MAX)) {
		for (unsigned int i = 0; i < ARRAY_SIZE(some); i++) {
			n = some[i];
			/* Which complete at once */
			MEASURE(for (unsigned int j = 0; j < n; j++)
					uring_sqe()->opcode = IORING_OP_NOP,
				uring_submit(), uring_default.collect(n));
			row("io_uring", "trigger", n, "insns/event", 0, n);
			MEASURE(, for (unsigned int j = 0; j < n; j++)
					uring_sqe()->opcode = IORING_OP_NOP;
				uring_submit(); uring_default.collect(n), );
			row("io_uring", "trigger.path", n, "insns/event", 0, n);
		}
		uring_default.close();
	}
}

/*
 * What a queue can do that its peers cannot: hand registrations over, let events wait, grow
 */

#define GROWN (2 * BATCH_MAX)

static int queue_of(unsigned int slots, unsigned int flags)
{
	struct kevent_params params = { .slots = slots, .flags = flags };
	long fd = call3(__NR_kevent_init, (long)&params, sizeof(params), 0);

	must(fd >= 0, "kevent_init", fd);
	return fd;
}

static void collect_all(int queue, unsigned int n)
{
	static struct ukevent events[BATCH_MAX];
	long got = call6(__NR_kevent_getevents, queue, (long)events, 0, n, 0, 0);

	must(got == n, "kevent_getevents", got);
}

static void move_rows(void)
{
	static const unsigned int some[] = { 1, BATCH_MAX };
	static struct ukevent there[BATCH_MAX], back[BATCH_MAX];
	int from = queue_of(BATCH_MAX, 0), to = queue_of(BATCH_MAX, 0);

	make_sources(EVENTFD, BATCH_MAX);
	for (unsigned int i = 0; i < BATCH_MAX; i++) {
		there[i] = (struct ukevent) {
			.ident = sources[i].r,
			.source = KEVENT_SOURCE_FD,
			.op = KEVENT_OP_ADD,
			.flags = KEVENT_EDGE,
			.events = EPOLLIN,
		};
		back[i] = (struct ukevent) {
			.ident = sources[i].r,
			.source = KEVENT_SOURCE_FD,
			.op = KEVENT_OP_MOVE,
			.data = from,
		};
	}
	change(from, there, BATCH_MAX);
	memcpy(there, back, sizeof(there));
	for (unsigned int i = 0; i < BATCH_MAX; i++)
		there[i].data = to;
	for (unsigned int i = 0; i < ARRAY_SIZE(some); i++) {
		MEASURE(, change(from, there, some[i]), change(to, back, some[i]));
		row("kevent", "move", some[i], "insns/event", 0, some[i]);
	}
	close_sources();
	call3(__NR_close, from, 0, 0);
	call3(__NR_close, to, 0, 0);
}

static void full_rows(void)
{
	const unsigned int n = 64;
	int queue = queue_of(1, KEVENT_INIT_OVERCOMMIT);

	add_counts(queue);
	/* The first is in the ring, the others wait. */
	MEASURE(, change(queue, triggers, n), collect_all(queue, n));
	row("kevent", "full", n, "insns/event", 0, n);
	MEASURE(change(queue, triggers, n), change(queue, triggers, n), collect_all(queue, n));
	row("kevent", "full.again", n, "insns/event", 0, n);
	call3(__NR_close, queue, 0, 0);
}

static void grow_rows(void)
{
	static const unsigned int unclaimed[] = { 0, BATCH_MAX };
	struct ukevent grow = {
		.source = KEVENT_SOURCE_QUEUE,
		.op = KEVENT_OP_GROW,
		.data = GROWN,
	};
	int queue = -1;

	for (unsigned int i = 0; i < ARRAY_SIZE(unclaimed); i++) {
		MEASURE(queue = queue_of(BATCH_MAX, 0); add_counts(queue);
			change(queue, triggers, unclaimed[i]),
			change(queue, &grow, 1),
			call3(__NR_close, queue, 0, 0));
		row("kevent", "grow", unclaimed[i], "insns", 0, 1);
	}
}

static void group_queue(void)
{
	if (!kevent_ring.open(1))
		return;
	kevent_ring.close();
	move_rows();
	full_rows();
	grow_rows();
}

/*
 * Memory
 */

#define CGROUPS "/tmp/kevent-bench-cgroup"

static bool put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

struct charged {
	long kernel, slab, vmalloc;
};

/* What the memory cgroup has been charged for. */
static struct charged charged(void)
{
	FILE *file = fopen(CGROUPS "/bench/memory.stat", "r");
	struct charged found = {};
	char line[256];

	must(file, "memory.stat", errno);
	while (fgets(line, sizeof(line), file)) {
		sscanf(line, "kernel %ld", &found.kernel);
		sscanf(line, "slab %ld", &found.slab);
		sscanf(line, "vmalloc %ld", &found.vmalloc);
	}
	fclose(file);
	return found;
}

static void group_bytes(void)
{
	enum { COUNT = 8192 };
	bool ready;

	mkdir(CGROUPS, 0755);
	ready = !mount("none", CGROUPS, "cgroup2", 0, NULL) &&
		put(CGROUPS "/cgroup.subtree_control", "+memory") &&
		!mkdir(CGROUPS "/bench", 0755);
	must(ready, "memory cgroup", errno);
	make_sources(EVENTFD, COUNT);
	must(put(CGROUPS "/bench/cgroup.procs", "0"), "cgroup.procs", errno);
	for (unsigned int i = 0; i < ARRAY_SIZE(peers); i++) {
		const struct peer *peer = peers[i];
		struct charged before, opened, after;

		if (peer == &kevent_call)
			continue;
		/* Twice: what is there for good after the first time does not count. */
		for (int turn = 0; turn < 2; turn++) {
			before = charged();
			if (!peer->open(COUNT))
				break;
			opened = charged();
			peer->add(0, COUNT);
			after = charged();
			peer->close();
			/* Much is freed a grace period later. */
			sleep(1);
			if (!turn)
				continue;
			fixed(peer->name, "bytes.registration", -1, "bytes",
			      (double)(after.slab + after.vmalloc - opened.slab - opened.vmalloc)
			      / COUNT);
			fixed(peer->name, "bytes.all", -1, "bytes",
			      (double)(after.kernel - before.kernel) / COUNT);
		}
	}
	put(CGROUPS "/cgroup.procs", "0");
	close_sources();
}

/*
 * Shapes of real event loops
 */

/*
 * As bench.c of libevent: of @n pipes, @active are written to at first, and
 * whoever is read from writes to the next, @writes times in all.
 */
static unsigned int loop(const struct peer *peer, unsigned int n, unsigned int active,
			 unsigned int writes)
{
	unsigned int fired = active, count = 0, events;

	for (unsigned int i = 0; i < active; i++)
		write_to(i * (n / active));
	while (count < fired) {
		events = peer->look(64);
		for (unsigned int i = 0; i < events; i++) {
			unsigned int at = collected[i];

			read_from(at);
			if (peer->one_shot)
				peer->add(at, 1);
			count++;
			if (writes) {
				write_to(at + 1 < n ? at + 1 : 0);
				writes--;
				fired++;
			}
		}
	}
	return count;
}

/* Requests on @n TCP connections, to a server that waits for events. */
static void echo(const struct peer *peer, unsigned int n)
{
	unsigned int served = 0, events;

	write_all(n);
	while (served < n) {
		events = peer->look(64);
		for (unsigned int i = 0; i < events; i++) {
			unsigned int at = collected[i];

			read_from(at);
			call3(SYS_write, sources[at].r, (long)&one, sizeof(one));
			if (peer->one_shot)
				peer->add(at, 1);
			served++;
		}
	}
	for (unsigned int i = 0; i < n; i++)
		call3(SYS_read, sources[i].w, (long)&scratch, sizeof(scratch));
}

static void group_loop(void)
{
	static const struct {
		unsigned int n, active, writes;
		const char *name;
	} shapes[] = {
		{ 100, 1, 100, "loop.100.1.100" },
		{ 100, 50, 100, "loop.100.50.100" },
		{ 1000, 50, 200, "loop.1000.50.200" },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(peers); i++) {
		const struct peer *peer = peers[i];

		for (unsigned int j = 0; j < ARRAY_SIZE(shapes); j++) {
			unsigned int count = 0;

			if (!begin(peer, PIPE, shapes[j].n))
				break;
			MEASURE(, count = loop(peer, shapes[j].n, shapes[j].active,
					       shapes[j].writes), );
			row(peer->name, shapes[j].name, -1, "insns/event", 0, count);
			end(peer);
		}
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(peers); i++) {
		const struct peer *peer = peers[i];

		if (!begin(peer, TCP, 64))
			continue;
		MEASURE(, echo(peer, 1), );
		row(peer->name, "echo", 1, "insns/event", 0, 1);
		MEASURE(, echo(peer, 64), );
		row(peer->name, "echo", 64, "insns/event", 0, 64);
		end(peer);
	}
}

/* The cost of an event beside sources to which nothing happens. */
static void group_idle(void)
{
	enum { ACTIVE = 64, SLOTS_MAX = 2 * KEVENT_MAX_SLOTS };
	u32 plain, with_reads;

	make_sources(EVENTFD, ACTIVE);
	with_reads = plain_writes(ACTIVE, true);
	plain = plain_writes(ACTIVE, false);
	make_sources(EVENTFD, ACTIVE + idle_max);
	for (unsigned int i = 0; i < ARRAY_SIZE(peers); i++) {
		const struct peer *peer = peers[i];

		for (unsigned int idle = 10; idle <= idle_max; idle *= 10) {
			if (!peer->open(ACTIVE + idle))
				break;
			/* In parts, because the arrays for it are so large. */
			for (unsigned int at = 0; at < ACTIVE + idle; at += BATCH_MAX) {
				unsigned int left = ACTIVE + idle - at;

				peer->add(at, left < BATCH_MAX ? left : BATCH_MAX);
			}
			go_around(peer, ACTIVE, ACTIVE + idle < SLOTS_MAX ? ACTIVE + idle :
								SLOTS_MAX);
			path_rows(peer, "idle", ACTIVE, peer->one_shot ? with_reads : plain,
				  idle);
			peer->close();
		}
	}
	close_sources();
}

/*
 * For plugin.c: what it is to look at, between marks.  Each row, it is told so
 * anew, and is printed here without its numbers.
 */

#define MARK(number) asm volatile("nopl " #number "(%%rax)" : : : "memory")
#define MARK_ROW MARK(0x4b455601)
#define MARK_WRITE MARK(0x4b455602)
#define MARK_COLLECT MARK(0x4b455603)
#define MARK_END MARK(0x4b455604)

static void marked(const struct peer *peer, unsigned int n)
{
	printf("{\"name\": \"marked.%u\", \"peer\": \"%s\"}\n", n, peer ? peer->name : "none");
	fflush(stdout);
	MARK_ROW;
	for (unsigned int rep = 0; rep < reps + WARM_UP; rep++) {
		MARK_WRITE;
		write_all(n);
		MARK_COLLECT;
		if (peer)
			peer->collect(n);
		MARK_END;
		if (peer)
			settle(peer, n);
		else
			read_all(n);
	}
}

static void group_marks(void)
{
	static const unsigned int some[] = { 1, 64 };

	make_sources(EVENTFD, 64);
	for (unsigned int i = 0; i < ARRAY_SIZE(some); i++)
		marked(NULL, some[i]);
	close_sources();
	for (unsigned int i = 0; i < ARRAY_SIZE(peers); i++) {
		if (!begin(peers[i], EVENTFD, 64))
			continue;
		for (unsigned int j = 0; j < ARRAY_SIZE(some); j++)
			marked(peers[i], some[j]);
		end(peers[i]);
	}
}

/* As marked(), of changes: the producer makes them, the consumer takes them back. */
static void marked_changes(const struct peer *peer, const char *name,
			   void (*make)(unsigned int first, unsigned int n), bool there,
			   unsigned int n)
{
	printf("{\"name\": \"%s.%u\", \"peer\": \"%s\"}\n", name, n, peer->name);
	fflush(stdout);
	if (!there)
		peer->del(0, n);
	MARK_ROW;
	for (unsigned int rep = 0; rep < reps + WARM_UP; rep++) {
		MARK_WRITE;
		make(0, n);
		MARK_COLLECT;
		if (!there)
			peer->del(0, n);
		MARK_END;
	}
	if (!there)
		peer->add(0, n);
}

static void group_where(void)
{
	static const struct peer *const those[] = { &kevent_ring, &epoll_edge };

	make_sources(EVENTFD, 64);
	marked(NULL, 64);
	close_sources();
	for (unsigned int i = 0; i < ARRAY_SIZE(those); i++) {
		must(begin(those[i], EVENTFD, 64), "begin", i);
		marked(those[i], 64);
		marked_changes(those[i], "change", those[i]->add, false, 64);
		marked_changes(those[i], "modify", those[i]->modify, true, 64);
		end(those[i]);
	}
}

static const struct {
	const char *name;
	void (*run)(void);
	bool asked_for;
} groups[] = {
	{ "empty", group_empty },
	{ "others", group_others },
	{ "wake", group_wake },
	{ "collect", group_collect },
	{ "path", group_path },
	{ "change", group_change },
	{ "timer", group_timer },
	{ "trigger", group_trigger },
	{ "queue", group_queue },
	{ "bytes", group_bytes },
	{ "loop", group_loop },
	{ "idle", group_idle },
	{ "marks", group_marks, .asked_for = true },
	{ "where", group_where, .asked_for = true },
};

/* So many files as there can be sources, and as many registrations of each peer. */
static void raise_limits(void)
{
	struct rlimit files = { 2100000, 2100000 };

	put("/proc/sys/fs/nr_open", "2200000");
	put("/proc/sys/fs/file-max", "4000000");
	put("/proc/sys/fs/aio-max-nr", "4000000");
	put("/proc/sys/fs/epoll/max_user_watches", "4000000");
	put("/proc/sys/fs/kevent/max_user_registrations", "4000000");
	must(!setrlimit(RLIMIT_NOFILE, &files), "RLIMIT_NOFILE", errno);
}

static void calibrate(void)
{
	u32 all, inside = 0, start;

	MEASURE(, , );
	bracket = least;
	/* As COUNTED() does it, often enough for a mean. */
	start = now();
	for (int i = 0; i < 100; i++) {
		u32 begin = now();

		asm volatile("" : : : "memory");
		inside += now() - begin;
		asm volatile("" : "+r"(inside));
	}
	all = now() - start - bracket;
	/* The loop itself is an addition and a branch. */
	counted_all = all / 100.0 - 2;
	counted_inside = inside / 100.0;
}

int main(int argc, char **argv)
{
	bool chosen = false;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--idle") && i + 1 < argc) {
			idle_max = atoi(argv[++i]);
		} else if (!strcmp(argv[i], "--reps") && i + 1 < argc) {
			reps = atoi(argv[++i]);
			must(reps > 0 && reps <= REPS_MAX, "--reps", reps);
		} else if (argv[i][0] == '-') {
			die("unknown option, see the source", i);
		} else {
			chosen = true;
		}
	}
	raise_limits();
	sources = calloc(idle_max + 4096 + 8192, sizeof(*sources));
	must(sources, "calloc", errno);
	must(!mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall", errno);
	calibrate();
	for (unsigned int i = 0; i < ARRAY_SIZE(groups); i++) {
		bool run = !chosen && !groups[i].asked_for;

		for (int j = 1; j < argc; j++)
			run |= !strcmp(argv[j], groups[i].name);
		if (run)
			groups[i].run();
	}
	return 0;
}
