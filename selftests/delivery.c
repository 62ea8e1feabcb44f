// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: which events come, from which source, and how they look in the ring
 * and to kevent_getevents().
 */
#include "kevent_util.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pty.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <termios.h>

#define NONE -1

/*
 * The sources
 */

/**
 * struct source - something that becomes readable
 * @fd: the descriptor to watch
 * @peer: the one that makes it readable
 * @pid: the process that does, if one does
 */
struct source {
	int fd;
	int peer;
	pid_t pid;
};

/**
 * struct source_ops - a kind of source
 * @open: true if it could be opened
 * @trigger: makes it readable
 * @drain: makes it unreadable again; not there if that cannot be
 * @rewakes: it reports activity while it is readable already
 * @later: it can wake its waiters later, from another context
 * @queues: what is written to it gets there later, piece by piece
 */
struct source_ops {
	bool (*open)(struct source *s);
	void (*trigger)(struct source *s);
	void (*drain)(struct source *s);
	bool rewakes;
	bool later;
	bool queues;
};

static void drain_by_read(struct source *s)
{
	char buf[512];

	while (read(s->fd, buf, sizeof(buf)) > 0)
		;
}

static void trigger_by_write(struct source *s)
{
	while (write(s->peer, "x", 1) < 0 && errno == EINTR)
		;
}

static bool eventfd_open(struct source *s)
{
	s->fd = open_eventfd();
	return s->fd >= 0;
}

static void eventfd_trigger(struct source *s)
{
	signal_eventfd(s->fd);
}

static bool pipe_open(struct source *s)
{
	int p[2];

	if (pipe2(p, O_CLOEXEC | O_NONBLOCK))
		return false;
	s->fd = p[0];
	s->peer = p[1];
	return true;
}

static bool unix_open(struct source *s, int type)
{
	int p[2];

	if (socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, p))
		return false;
	s->fd = p[0];
	s->peer = p[1];
	return true;
}

static bool unix_stream_open(struct source *s)
{
	return unix_open(s, SOCK_STREAM);
}

static bool unix_dgram_open(struct source *s)
{
	return unix_open(s, SOCK_DGRAM);
}

/* Small test systems come up without it. */
static void bring_loopback_up(void)
{
	struct ifreq ifr = { .ifr_name = "lo" };
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (!ioctl(s, SIOCGIFFLAGS, &ifr) && !(ifr.ifr_flags & IFF_UP)) {
		ifr.ifr_flags |= IFF_UP;
		ioctl(s, SIOCSIFFLAGS, &ifr);
	}
	close(s);
}

static int tcp_listen(struct sockaddr_in *addr)
{
	socklen_t len = sizeof(*addr);
	int s;

	bring_loopback_up();
	memset(addr, 0, sizeof(*addr));
	addr->sin_family = AF_INET;
	addr->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(s, (struct sockaddr *)addr, sizeof(*addr)) || listen(s, 8) ||
	    getsockname(s, (struct sockaddr *)addr, &len)) {
		close(s);
		return -1;
	}
	return s;
}

static int tcp_connect(const struct sockaddr_in *addr, int flags)
{
	int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

	if (connect(s, (struct sockaddr *)addr, sizeof(*addr)) &&
	    errno != EINPROGRESS) {
		close(s);
		return -1;
	}
	return s;
}

static bool tcp_open(struct source *s)
{
	struct sockaddr_in addr;
	int listener;

	listener = tcp_listen(&addr);
	if (listener < 0)
		return false;
	s->peer = tcp_connect(&addr, 0);
	if (s->peer < 0) {
		close(listener);
		return false;
	}
	s->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	close(listener);
	return s->fd >= 0;
}

static bool tty_open(struct source *s)
{
	struct termios t;
	char *name;

	s->peer = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (s->peer < 0 || grantpt(s->peer) || unlockpt(s->peer))
		return false;
	name = ptsname(s->peer);
	if (!name)
		return false;
	s->fd = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (s->fd < 0 || tcgetattr(s->fd, &t))
		return false;
	cfmakeraw(&t);
	return !tcsetattr(s->fd, TCSANOW, &t);
}

static bool timerfd_open(struct source *s)
{
	s->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	return s->fd >= 0;
}

static void timerfd_trigger(struct source *s)
{
	struct itimerspec its = { .it_value.tv_nsec = NSEC_PER_MSEC };

	timerfd_settime(s->fd, 0, &its, NULL);
}

static bool signalfd_open(struct source *s)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	s->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return s->fd >= 0;
}

static void signalfd_trigger(struct source *s __maybe_unused)
{
	kill(getpid(), SIGUSR1);
}

static bool pidfd_open_child(struct source *s)
{
	s->pid = fork();
	if (!s->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	if (s->pid > 0)
		s->fd = syscall(__NR_pidfd_open, s->pid, 0);
	return s->fd >= 0;
}

static void pidfd_trigger(struct source *s)
{
	kill(s->pid, SIGKILL);
}

static bool inotify_open(struct source *s)
{
	static const char * const dirs[] = { "/tmp", "/dev/shm", "/run", "." };
	char path[64];

	for (size_t i = 0; i < ARRAY_SIZE(dirs) && s->peer < 0; i++) {
		snprintf(path, sizeof(path), "%s/kevent.XXXXXX", dirs[i]);
		s->peer = mkostemp(path, O_CLOEXEC);
	}
	if (s->peer < 0)
		return false;
	s->fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (s->fd >= 0 && inotify_add_watch(s->fd, path, IN_MODIFY) < 0) {
		close(s->fd);
		s->fd = NONE;
	}
	unlink(path);
	return s->fd >= 0;
}

static const struct source_ops eventfd_ops = {
	.open = eventfd_open,
	.trigger = eventfd_trigger,
	.drain = drain_by_read,
	.rewakes = true,
};

static const struct source_ops pipe_ops = {
	.open = pipe_open,
	.trigger = trigger_by_write,
	.drain = drain_by_read,
	/* A pipe wakes its readers only when it was empty. */
};

static const struct source_ops unix_stream_ops = {
	.open = unix_stream_open,
	.trigger = trigger_by_write,
	.drain = drain_by_read,
	.rewakes = true,
};

static const struct source_ops unix_dgram_ops = {
	.open = unix_dgram_open,
	.trigger = trigger_by_write,
	.drain = drain_by_read,
	.rewakes = true,
};

static const struct source_ops tcp_ops = {
	.open = tcp_open,
	.trigger = trigger_by_write,
	.drain = drain_by_read,
	.rewakes = true,
	.later = true,
	.queues = true,
};

static const struct source_ops tty_ops = {
	.open = tty_open,
	.trigger = trigger_by_write,
	.drain = drain_by_read,
	.rewakes = true,
	.later = true,
	.queues = true,
};

static const struct source_ops timerfd_ops = {
	.open = timerfd_open,
	.trigger = timerfd_trigger,
	.drain = drain_by_read,
	.later = true,
};

/* The second signal is not queued, it is the first. */
static const struct source_ops signalfd_ops = {
	.open = signalfd_open,
	.trigger = signalfd_trigger,
	.drain = drain_by_read,
};

static const struct source_ops pidfd_ops = {
	.open = pidfd_open_child,
	.trigger = pidfd_trigger,
	.later = true,
};

/* The second event is not queued, it is the first. */
static const struct source_ops inotify_ops = {
	.open = inotify_open,
	.trigger = trigger_by_write,
	.drain = drain_by_read,
};

/*
 * What every source has to do, however its events are collected
 */

#define SLOTS 8
#define UDATA 0x123456789abcdef0ULL

FIXTURE(source) {
	struct source s;
	struct kq q;
	enum collect_by by;
};

FIXTURE_VARIANT(source) {
	const struct source_ops *ops;
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(source, eventfd_ring) { &eventfd_ops, BY_RING };
FIXTURE_VARIANT_ADD(source, eventfd_call) { &eventfd_ops, BY_SYSCALL };
FIXTURE_VARIANT_ADD(source, pipe_ring) { &pipe_ops, BY_RING };
FIXTURE_VARIANT_ADD(source, pipe_call) { &pipe_ops, BY_SYSCALL };
FIXTURE_VARIANT_ADD(source, unix_stream_ring) { &unix_stream_ops, BY_RING };
FIXTURE_VARIANT_ADD(source, unix_stream_call) { &unix_stream_ops, BY_SYSCALL };
FIXTURE_VARIANT_ADD(source, unix_dgram_ring) { &unix_dgram_ops, BY_RING };
FIXTURE_VARIANT_ADD(source, unix_dgram_call) { &unix_dgram_ops, BY_SYSCALL };
FIXTURE_VARIANT_ADD(source, tcp_ring) { &tcp_ops, BY_RING };
FIXTURE_VARIANT_ADD(source, tcp_call) { &tcp_ops, BY_SYSCALL };
FIXTURE_VARIANT_ADD(source, tty_ring) { &tty_ops, BY_RING };
FIXTURE_VARIANT_ADD(source, tty_call) { &tty_ops, BY_SYSCALL };
FIXTURE_VARIANT_ADD(source, timerfd_ring) { &timerfd_ops, BY_RING };
FIXTURE_VARIANT_ADD(source, timerfd_call) { &timerfd_ops, BY_SYSCALL };
FIXTURE_VARIANT_ADD(source, signalfd_ring) { &signalfd_ops, BY_RING };
FIXTURE_VARIANT_ADD(source, signalfd_call) { &signalfd_ops, BY_SYSCALL };
FIXTURE_VARIANT_ADD(source, pidfd_ring) { &pidfd_ops, BY_RING };
FIXTURE_VARIANT_ADD(source, pidfd_call) { &pidfd_ops, BY_SYSCALL };
FIXTURE_VARIANT_ADD(source, inotify_ring) { &inotify_ops, BY_RING };
FIXTURE_VARIANT_ADD(source, inotify_call) { &inotify_ops, BY_SYSCALL };

FIXTURE_SETUP(source)
{
	self->s = (struct source) { NONE, NONE, 0 };
	self->by = variant->by;
	if (kq_setup(_metadata, &self->q, SLOTS))
		ASSERT_TRUE(variant->ops->open(&self->s));
}

FIXTURE_TEARDOWN(source)
{
	kq_close(&self->q);
	if (self->s.pid > 0) {
		kill(self->s.pid, SIGKILL);
		reap(self->s.pid);
	}
}

#define want_source_event(udata) \
	want_event(&self->q, self->by, self->s.fd, EPOLLIN, EPOLLIN, udata)

#define want_source_none() want_none(&self->q, self->by)

/* It may be about to wake its waiters. */
static void settle(const struct source_ops *ops)
{
	if (ops->later)
		sleep_ms(SETTLE_MS);
}

#define want_source_silent() do {	\
	settle(variant->ops);		\
	want_source_none();		\
} while (0)

/* Until all that was triggered, @nr times, is there and was told of */
static void wait_readable(const struct source_ops *ops, struct source *s, int nr)
{
	struct pollfd pfd = { .fd = s->fd, .events = POLLIN };
	__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
	int there = 0;

	while (poll(&pfd, 1, PATIENCE_MS) < 0 && errno == EINTR)
		;
	while (ops->queues && !ioctl(s->fd, FIONREAD, &there) && there < nr &&
	       now_ns() < end)
		sleep_ms(1);
	settle(ops);
}

TEST_F(source, reports_that_it_becomes_ready)
{
	ASSERT_EQ(1, kq_add(&self->q, self->s.fd, EPOLLIN, UDATA));
	want_source_none();
	variant->ops->trigger(&self->s);
	want_source_event(UDATA);
	want_source_silent();
}

TEST_F(source, that_is_ready_is_reported_at_once)
{
	struct ukevent ev;

	variant->ops->trigger(&self->s);
	wait_readable(variant->ops, &self->s, 1);
	ASSERT_EQ(1, kq_add(&self->q, self->s.fd, EPOLLIN, UDATA));
	ASSERT_EQ(1, kq_collect(&self->q, self->by, &ev, 1));
	EXPECT_EQ(self->s.fd, ev.ident);
	EXPECT_EQ(UDATA, ev.user_data);
	/* The state was looked at, so there is no need for a hint. */
	EXPECT_EQ(EPOLLIN, ev.events);
	want_source_silent();
}

TEST_F(source, reports_new_activity_after_it_was_drained)
{
	if (!variant->ops->drain)
		return;
	ASSERT_EQ(1, kq_add(&self->q, self->s.fd, EPOLLIN, UDATA));
	for (int i = 0; i < 3; i++) {
		variant->ops->trigger(&self->s);
		want_source_event(UDATA);
		variant->ops->drain(&self->s);
		want_source_silent();
	}
}

TEST_F(source, reports_new_activity_while_it_is_ready)
{
	if (!variant->ops->rewakes)
		return;
	ASSERT_EQ(1, kq_add(&self->q, self->s.fd, EPOLLIN, UDATA));
	for (int i = 0; i < 3; i++) {
		variant->ops->trigger(&self->s);
		want_source_event(UDATA);
	}
	want_source_silent();
}

TEST_F(source, merges_activity_into_the_unclaimed_event)
{
	ASSERT_EQ(1, kq_add(&self->q, self->s.fd, EPOLLIN, UDATA));
	for (int i = 0; i < 3; i++)
		variant->ops->trigger(&self->s);
	wait_readable(variant->ops, &self->s, 3);
	want_source_event(UDATA);
	want_source_silent();
}

TEST_F(source, is_silent_once_deleted)
{
	ASSERT_EQ(1, kq_add(&self->q, self->s.fd, EPOLLIN, UDATA));
	ASSERT_EQ(1, kq_del(&self->q, self->s.fd));
	variant->ops->trigger(&self->s);
	wait_readable(variant->ops, &self->s, 1);
	want_source_none();
}

TEST_F(source, has_its_unclaimed_event_cancelled_by_deletion)
{
	ASSERT_EQ(1, kq_add(&self->q, self->s.fd, EPOLLIN, UDATA));
	variant->ops->trigger(&self->s);
	wait_readable(variant->ops, &self->s, 1);
	ASSERT_EQ(1, kq_del(&self->q, self->s.fd));
	want_source_silent();

	ASSERT_EQ(1, kq_add(&self->q, self->s.fd, EPOLLIN, UDATA + 1));
	want_source_event(UDATA + 1);
	want_source_silent();
}

TEST_F(source, is_looked_at_again_by_modification)
{
	variant->ops->trigger(&self->s);
	wait_readable(variant->ops, &self->s, 1);
	ASSERT_EQ(1, kq_add(&self->q, self->s.fd, EPOLLIN, UDATA));
	want_source_event(UDATA);
	ASSERT_EQ(1, kq_mod(&self->q, self->s.fd, EPOLLIN, UDATA + 1));
	want_source_event(UDATA + 1);
	want_source_silent();
}

TEST_F(source, has_no_old_event_after_modification)
{
	ASSERT_EQ(1, kq_add(&self->q, self->s.fd, EPOLLIN, UDATA));
	variant->ops->trigger(&self->s);
	wait_readable(variant->ops, &self->s, 1);
	ASSERT_EQ(1, kq_mod(&self->q, self->s.fd, EPOLLIN, UDATA + 1));
	want_source_event(UDATA + 1);
	want_source_silent();
}

/* Sources are often closed as they are, with events pending. */
TEST_F(source, may_be_closed_while_it_is_active)
{
	ASSERT_EQ(1, kq_add(&self->q, self->s.fd, EPOLLIN, UDATA));
	variant->ops->trigger(&self->s);
	close(self->s.fd);
	want_source_silent();
}

/*
 * What is particular to a source, and what takes more than one
 */

FIXTURE(events) {
	struct kq q;
	enum collect_by by;
};

FIXTURE_VARIANT(events) {
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(events, ring) { BY_RING };
FIXTURE_VARIANT_ADD(events, call) { BY_SYSCALL };

FIXTURE_SETUP(events)
{
	self->by = variant->by;
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(events)
{
	kq_close(&self->q);
}

#define want(fd, asked, must, udata) \
	want_event(&self->q, self->by, fd, asked, must, udata)
#define want_no_event() want_none(&self->q, self->by)

TEST_F(events, hang_up_of_a_pipe_comes_unasked)
{
	struct source s;

	ASSERT_TRUE(pipe_open(&s));
	ASSERT_EQ(1, kq_add(&self->q, s.fd, 0, UDATA));
	trigger_by_write(&s);
	want_no_event();
	close(s.peer);
	want(s.fd, 0, EPOLLHUP, UDATA);
	want_no_event();
}

TEST_F(events, error_of_a_pipe_comes_unasked)
{
	struct source s;

	ASSERT_TRUE(pipe_open(&s));
	ASSERT_EQ(1, kq_add(&self->q, s.peer, 0, UDATA));
	want_no_event();
	close(s.fd);
	want(s.peer, 0, EPOLLERR, UDATA);
	want_no_event();
}

TEST_F(events, hang_up_that_was_there_before_comes_at_once)
{
	struct source s;
	struct ukevent ev;

	ASSERT_TRUE(pipe_open(&s));
	close(s.peer);
	ASSERT_EQ(1, kq_add(&self->q, s.fd, 0, UDATA));
	ASSERT_EQ(1, kq_collect(&self->q, self->by, &ev, 1));
	EXPECT_EQ(EPOLLHUP, ev.events);
	want_no_event();
}

TEST_F(events, hang_up_of_a_unix_socket_comes_unasked)
{
	struct source s;

	ASSERT_TRUE(unix_stream_open(&s));
	ASSERT_EQ(1, kq_add(&self->q, s.fd, 0, UDATA));
	want_no_event();
	close(s.peer);
	want(s.fd, 0, EPOLLHUP, UDATA);
}

TEST_F(events, reset_of_a_tcp_connection_comes_unasked)
{
	struct linger now = { .l_onoff = 1 };
	struct source s;

	ASSERT_TRUE(tcp_open(&s));
	ASSERT_EQ(1, kq_add(&self->q, s.fd, 0, UDATA));
	want_no_event();
	ASSERT_EQ(0, setsockopt(s.peer, SOL_SOCKET, SO_LINGER, &now,
				sizeof(now)));
	close(s.peer);
	want(s.fd, 0, 0, UDATA);
}

TEST_F(events, hang_up_of_a_tty_comes_unasked)
{
	struct source s;

	ASSERT_TRUE(tty_open(&s));
	ASSERT_EQ(1, kq_add(&self->q, s.fd, 0, UDATA));
	want_no_event();
	close(s.peer);
	want(s.fd, 0, EPOLLHUP, UDATA);
}

TEST_F(events, half_close_of_a_tcp_connection_comes_if_asked_for)
{
	const __u32 asked = EPOLLIN | EPOLLRDHUP;
	struct source s;

	ASSERT_TRUE(tcp_open(&s));
	ASSERT_EQ(1, kq_add(&self->q, s.fd, asked, UDATA));
	want_no_event();
	ASSERT_EQ(0, shutdown(s.peer, SHUT_WR));
	want(s.fd, asked, asked, UDATA);
}

TEST_F(events, connection_makes_a_listener_readable)
{
	struct sockaddr_in addr;
	int s;

	s = tcp_listen(&addr);
	ASSERT_LE(0, s);
	ASSERT_EQ(1, kq_add(&self->q, s, EPOLLIN, UDATA));
	want_no_event();
	for (int i = 0; i < 3; i++) {
		ASSERT_LE(0, tcp_connect(&addr, 0));
		want(s, EPOLLIN, EPOLLIN, UDATA);
	}
	want_no_event();
}

TEST_F(events, completed_connection_makes_a_socket_writable)
{
	struct sockaddr_in addr;
	int listener, s;

	listener = tcp_listen(&addr);
	ASSERT_LE(0, listener);
	s = tcp_connect(&addr, SOCK_NONBLOCK);
	ASSERT_LE(0, s);
	ASSERT_EQ(1, kq_add(&self->q, s, EPOLLOUT, UDATA));
	want(s, EPOLLOUT, EPOLLOUT, UDATA);
}

TEST_F(events, only_what_was_asked_for_is_reported)
{
	struct source s;

	ASSERT_TRUE(unix_stream_open(&s));
	/* It is writable, but that is not the question. */
	ASSERT_EQ(1, kq_add(&self->q, s.fd, EPOLLIN, UDATA));
	want_no_event();
	ASSERT_EQ(1, kq_mod(&self->q, s.fd, EPOLLOUT, UDATA));
	want(s.fd, EPOLLOUT, EPOLLOUT, UDATA);
	/* Now it is readable, which is not the question either. */
	trigger_by_write(&s);
	want_no_event();
}

/*
 * A signal wakes who waits for it without saying that something can be read.
 * The ring passes on that it does not know; the call finds out.
 */
TEST_F(events, of_a_signalfd_is_a_hint_until_it_is_looked_at)
{
	const __u32 asked = EPOLLIN | EPOLLOUT | EPOLLPRI;
	struct source s;
	struct ukevent ev;

	ASSERT_TRUE(signalfd_open(&s));
	ASSERT_EQ(1, kq_add(&self->q, s.fd, asked, UDATA));
	want_no_event();
	for (int i = 0; i < 3; i++) {
		signalfd_trigger(&s);
		ASSERT_EQ(1, kq_collect(&self->q, self->by, &ev, 1));
		EXPECT_EQ(s.fd, ev.ident);
		EXPECT_EQ(self->by == BY_RING ? asked | KEVENT_FD_HINT :
			  EPOLLIN, ev.events);
		drain_by_read(&s);
		want_no_event();
	}
	ASSERT_EQ(1, kq_del(&self->q, s.fd));

	/* What is found out when it is registered needs no hint. */
	signalfd_trigger(&s);
	ASSERT_EQ(1, kq_add(&self->q, s.fd, asked, UDATA));
	ASSERT_EQ(1, kq_collect(&self->q, self->by, &ev, 1));
	EXPECT_EQ(EPOLLIN, ev.events);
}

TEST_F(events, full_pipe_becomes_writable)
{
	char page[4096] = { };
	struct source s;

	ASSERT_TRUE(pipe_open(&s));
	while (write(s.peer, page, sizeof(page)) > 0)
		;
	ASSERT_EQ(1, kq_add(&self->q, s.peer, EPOLLOUT, UDATA));
	want_no_event();
	drain_by_read(&s);
	want(s.peer, EPOLLOUT, EPOLLOUT, UDATA);
}

TEST_F(events, full_socket_becomes_writable)
{
	char page[4096] = { };
	struct ukevent ev;
	struct source s;
	int small = 16384;
	int nr = 0;

	ASSERT_TRUE(tcp_open(&s));
	ASSERT_EQ(0, setsockopt(s.peer, SOL_SOCKET, SO_SNDBUF, &small,
				sizeof(small)));
	ASSERT_EQ(0, fcntl(s.peer, F_SETFL, O_NONBLOCK));
	ASSERT_EQ(1, kq_add(&self->q, s.peer, EPOLLOUT, UDATA));
	/* It may find room, and tell so, more than once on the way. */
	do {
		while (write(s.peer, page, sizeof(page)) > 0)
			;
		sleep_ms(SETTLE_MS);
		kq_collect(&self->q, self->by, &ev, 1);
	} while (write(s.peer, page, sizeof(page)) > 0);
	want_no_event();
	/* A little room is none: TCP waits until there is more. */
	for (int ms = 0; ms < PATIENCE_MS && !nr; ms++) {
		drain_by_read(&s);
		sleep_ms(1);
		nr = kq_collect(&self->q, self->by, &ev, 1);
	}
	ASSERT_EQ(1, nr);
	EXPECT_EQ(UDATA, ev.user_data);
	EXPECT_TRUE(fd_value_ok(ev.events, EPOLLOUT, EPOLLOUT));
	EXPECT_LT(0, write(s.peer, page, sizeof(page)));
}

/* Read and write side of a tty wait in different places. */
TEST_F(events, both_sides_of_a_tty_are_watched)
{
	const __u32 asked = EPOLLIN | EPOLLOUT;
	struct source s;

	ASSERT_TRUE(tty_open(&s));
	ASSERT_EQ(1, kq_add(&self->q, s.fd, asked, UDATA));
	want(s.fd, asked, EPOLLOUT, UDATA);
	ASSERT_EQ(0, tcflow(s.fd, TCOOFF));
	sleep_ms(SETTLE_MS);
	want_no_event();
	ASSERT_EQ(0, tcflow(s.fd, TCOON));
	want(s.fd, asked, EPOLLOUT, UDATA);
	trigger_by_write(&s);
	want(s.fd, asked, EPOLLIN, UDATA);
}

TEST_F(events, of_one_source_are_merged_into_one_mask)
{
	const __u32 asked = EPOLLIN | EPOLLOUT;
	struct source s;

	ASSERT_TRUE(unix_stream_open(&s));
	ASSERT_EQ(1, kq_add(&self->q, s.fd, asked, UDATA));
	trigger_by_write(&s);
	want(s.fd, asked, asked, UDATA);
	want_no_event();
}

TEST_F(events, keep_the_order_in_which_they_happened)
{
	int fd[SLOTS];

	for (int i = 0; i < SLOTS; i++) {
		fd[i] = open_eventfd();
		ASSERT_LE(0, fd[i]);
		ASSERT_EQ(1, kq_add(&self->q, fd[i], EPOLLIN, i));
	}
	for (int lap = 0; lap < 3; lap++) {
		/* Three and eight have no common divisor: all are hit. */
		for (int i = 0; i < SLOTS; i++)
			signal_eventfd(fd[(3 * i + lap) % SLOTS]);
		/* What is merged stays where it is. */
		signal_eventfd(fd[(3 * 5 + lap) % SLOTS]);
		for (int i = 0; i < SLOTS; i++) {
			int n = (3 * i + lap) % SLOTS;

			want(fd[n], EPOLLIN, EPOLLIN, n);
		}
		want_no_event();
	}
}

TEST_F(events, of_two_descriptors_of_a_file_come_separately)
{
	int fd = open_eventfd();
	int copy = dup(fd);

	ASSERT_LE(0, copy);
	ASSERT_EQ(1, kq_add(&self->q, fd, EPOLLIN, 1));
	ASSERT_EQ(1, kq_add(&self->q, copy, EPOLLIN, 2));
	signal_eventfd(fd);
	for (int i = 0; i < 2; i++) {
		struct ukevent ev;

		ASSERT_EQ(1, kq_next(&self->q, self->by, &ev));
		EXPECT_EQ(ev.user_data == 1 ? fd : copy, ev.ident);
	}
	want_no_event();
	ASSERT_EQ(1, kq_del(&self->q, fd));
	signal_eventfd(fd);
	want(copy, EPOLLIN, EPOLLIN, 2);
	want_no_event();
}

/* As many registrations of one descriptor as there are tags */
TEST_F(events, of_two_tags_of_a_descriptor_come_separately)
{
	static const __u32 tags[] = { 0, 77, ~0U };
	int fd = open_eventfd();

	for (int i = 0; i < 3; i++) {
		struct ukevent add = kq_fd_change(KEVENT_OP_ADD, fd, EPOLLIN, i);

		add.tag = tags[i];
		ASSERT_EQ(1, kq_apply(&self->q, add));
	}
	for (int lap = 0; lap < 3; lap++) {
		unsigned int seen = 0;

		signal_eventfd(fd);
		for (int i = lap; i < 3; i++) {
			struct ukevent ev;

			ASSERT_EQ(1, kq_next(&self->q, self->by, &ev));
			EXPECT_EQ(fd, ev.ident);
			ASSERT_GT(3, ev.user_data);
			EXPECT_EQ(tags[ev.user_data], ev.tag);
			seen |= 1U << ev.user_data;
		}
		EXPECT_EQ(7 & (7 << lap), seen);
		want_no_event();
		EXPECT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_FD, KEVENT_OP_DEL, fd,
				   tags[lap]));
	}
	signal_eventfd(fd);
	want_no_event();
}

TEST_F(events, modification_by_tag_leaves_the_others_alone)
{
	struct ukevent change;
	int fd = open_eventfd();

	signal_eventfd(fd);
	for (int i = 0; i < 2; i++) {
		change = kq_fd_change(KEVENT_OP_ADD, fd, EPOLLIN, i);
		change.tag = i;
		ASSERT_EQ(1, kq_apply(&self->q, change));
	}
	change = kq_fd_change(KEVENT_OP_MOD, fd, EPOLLOUT, 10);
	change.tag = 1;
	ASSERT_EQ(1, kq_apply(&self->q, change));
	change.tag = 2;
	ASSERT_EQ(-ENOENT, kq_apply(&self->q, change));
	want(fd, EPOLLIN, EPOLLIN, 0);
	ASSERT_EQ(1, kq_next(&self->q, self->by, &change));
	EXPECT_EQ(1, change.tag);
	EXPECT_EQ(10, change.user_data);
	EXPECT_EQ(EPOLLOUT, change.events);
	want_no_event();
}

TEST_F(events, modification_changes_mask_and_user_data)
{
	int fd = open_eventfd();

	ASSERT_EQ(1, kq_add(&self->q, fd, EPOLLIN, 1));
	ASSERT_EQ(1, kq_mod(&self->q, fd, EPOLLOUT, 2));
	want(fd, EPOLLOUT, EPOLLOUT, 2);
	signal_eventfd(fd);
	want_no_event();
	ASSERT_EQ(1, kq_mod(&self->q, fd, EPOLLIN, 3));
	want(fd, EPOLLIN, EPOLLIN, 3);
	signal_eventfd(fd);
	want(fd, EPOLLIN, EPOLLIN, 3);
}

TEST_F(events, modification_cancels_what_is_asked_for_no_more)
{
	int fd = open_eventfd();

	signal_eventfd(fd);
	ASSERT_EQ(1, kq_add(&self->q, fd, EPOLLIN, 1));
	ASSERT_EQ(1, kq_mod(&self->q, fd, EPOLLPRI, 2));
	want_no_event();
	ASSERT_EQ(1, kq_del(&self->q, fd));
	want_no_event();
}

/*
 * Each modification leaves a cancelled slot behind, until the ring is full of
 * them.  The event has to come nevertheless, through kevent_getevents() if not
 * through the ring, once and with the last user data.
 */
TEST_F(events, many_modifications_give_one_event)
{
	int fd = open_eventfd();
	struct ukevent ev[2];
	int nr;

	signal_eventfd(fd);
	ASSERT_EQ(1, kq_add(&self->q, fd, EPOLLIN, 0));
	for (int i = 1; i <= 3 * SLOTS; i++) {
		ASSERT_EQ(1, kq_mod(&self->q, fd, EPOLLIN, i))
			TH_LOG("modification %d", i);
	}

	nr = kq_collect(&self->q, self->by, ev, 2);
	if (!nr)
		nr = kq_getevents(&self->q, ev, 1, 2, PATIENCE_MS);
	ASSERT_EQ(1, nr);
	EXPECT_EQ(3 * SLOTS, ev[0].user_data);
	want_no_event();
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));

	signal_eventfd(fd);
	want(fd, EPOLLIN, EPOLLIN, 3 * SLOTS);
}

/* Register, delete and register again, without ever collecting */
TEST_F(events, deleted_and_added_again_come_once)
{
	int fd = open_eventfd();

	signal_eventfd(fd);
	for (int i = 0; i < SLOTS; i++) {
		ASSERT_EQ(1, kq_add(&self->q, fd, EPOLLIN, i));
		if (i == SLOTS - 1)
			break;
		ASSERT_EQ(1, kq_del(&self->q, fd));
	}
	want(fd, EPOLLIN, EPOLLIN, SLOTS - 1);
	want_no_event();
}

/*
 * What the call collects from the ring is so when it does.
 */

FIXTURE(call) {
	struct kq q;
	int fd;
};

FIXTURE_SETUP(call)
{
	self->fd = open_eventfd();
	ASSERT_LE(0, self->fd);
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(call)
{
	kq_close(&self->q);
}

/* What it finds is not so any more: it takes it, and nothing is left. */
static void __want_stale(struct __test_metadata *_metadata, int line,
			 struct kq *q, int fd)
{
	struct pollfd pfd = { .fd = q->fd, .events = POLLIN };
	struct ukevent ev;

	signal_eventfd(fd);
	drain_eventfd(fd);
	EXPECT_EQ(0, kq_getevents(q, &ev, 0, 1, 0))
		TH_LOG("line %d: value %#x", line, ev.events);
	EXPECT_EQ(0, kq_getevents(q, NULL, 1, 0, 0))
		TH_LOG("line %d", line);
	EXPECT_EQ(0, poll(&pfd, 1, 0))
		TH_LOG("line %d", line);
	EXPECT_EQ(0, kevent_ring_flags(&q->map))
		TH_LOG("line %d", line);
	__want_none(_metadata, line, q, BY_RING);
}

#define want_stale() __want_stale(_metadata, __LINE__, &self->q, self->fd)

TEST_F(call, leaves_out_what_is_not_so_any_more)
{
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, UDATA));
	for (int i = 0; i < 2 * SLOTS + 1; i++) {
		want_stale();
		signal_eventfd(self->fd);
		want_event(&self->q, BY_RING, self->fd, EPOLLIN, EPOLLIN,
			   UDATA);
		drain_eventfd(self->fd);
	}
	/* The ring says what has happened. */
	signal_eventfd(self->fd);
	drain_eventfd(self->fd);
	want_event(&self->q, BY_RING, self->fd, EPOLLIN, EPOLLIN, UDATA);
}

TEST_F(call, leaves_no_gap_for_what_it_leaves_out)
{
	struct ukevent evs[SLOTS];
	int fd[SLOTS];

	for (int i = 0; i < SLOTS; i++) {
		fd[i] = open_eventfd();
		ASSERT_LE(0, fd[i]);
		ASSERT_EQ(1, kq_add(&self->q, fd[i], EPOLLIN, i));
	}
	/* Every one, and every combination of its neighbours */
	for (int lap = 0; lap < 1 << SLOTS; lap++) {
		int nr = 0;

		for (int i = 0; i < SLOTS; i++) {
			signal_eventfd(fd[i]);
			if (lap >> i & 1)
				drain_eventfd(fd[i]);
		}
		ASSERT_EQ(SLOTS - __builtin_popcount(lap),
			  kq_getevents(&self->q, evs, 0, SLOTS, 0))
			TH_LOG("lap %d", lap);
		for (int i = 0; i < SLOTS; i++) {
			if (lap >> i & 1)
				continue;
			EXPECT_EQ(i, evs[nr].user_data);
			EXPECT_EQ(fd[i], evs[nr].ident);
			EXPECT_EQ(EPOLLIN, evs[nr].events);
			drain_eventfd(fd[i]);
			nr++;
		}
		want_none(&self->q, BY_RING);
	}
}

TEST_F(call, says_what_is_so_by_now)
{
	const __u32 asked = EPOLLIN | EPOLLOUT;
	struct ukevent ev;
	struct source s;

	ASSERT_TRUE(unix_stream_open(&s));
	ASSERT_EQ(1, kq_add(&self->q, s.fd, asked, UDATA));
	for (__u64 pos = 0; pos < 2 * SLOTS + 1; pos++) {
		__u64 word;

		trigger_by_write(&s);
		word = kevent_slot_word(kevent_ring_slot(&self->q.map, pos));
		EXPECT_TRUE(word & KEVENT_WORD_READY);
		EXPECT_EQ(EPOLLIN, KEVENT_WORD_VALUE(word) & EPOLLIN);
		drain_by_read(&s);
		ASSERT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
		EXPECT_EQ(s.fd, ev.ident);
		EXPECT_EQ(UDATA, ev.user_data);
		EXPECT_EQ(EPOLLOUT, ev.events);
		want_none(&self->q, BY_RING);
	}
}

TEST_F(call, does_not_end_a_one_shot_by_what_it_leaves_out)
{
	const __u32 mode = KEVENT_EDGE | KEVENT_ONESHOT;

	for (int i = 0; i < SLOTS + 1; i++) {
		ASSERT_EQ(1, kq_add_mode(&self->q, self->fd, EPOLLIN, mode, i));
		for (int n = 0; n < 2; n++)
			want_stale();
		EXPECT_EQ(-EEXIST, kq_add_mode(&self->q, self->fd, EPOLLIN,
					       mode, i));
		signal_eventfd(self->fd);
		want_mode(&self->q, i % 2 ? BY_SYSCALL : BY_RING, self->fd,
			  EPOLLIN, EPOLLIN, mode, i);
		EXPECT_EQ(-ENOENT, kq_del(&self->q, self->fd));
		drain_eventfd(self->fd);
	}
}

TEST_F(call, does_not_disable_by_what_it_leaves_out)
{
	const __u32 mode = KEVENT_EDGE | KEVENT_DISPATCH;

	ASSERT_EQ(1, kq_add_mode(&self->q, self->fd, EPOLLIN, mode, UDATA));
	for (int i = 0; i < SLOTS + 1; i++) {
		for (int n = 0; n < 2; n++)
			want_stale();
		signal_eventfd(self->fd);
		want_mode(&self->q, i % 2 ? BY_SYSCALL : BY_RING, self->fd,
			  EPOLLIN, EPOLLIN, mode, UDATA);
		/* Now it is disabled. */
		signal_eventfd(self->fd);
		want_none(&self->q, BY_RING);
		want_none(&self->q, BY_SYSCALL);
		drain_eventfd(self->fd);
		ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_FD, KEVENT_OP_ENABLE,
				   self->fd, 0));
		want_none(&self->q, BY_RING);
	}
}

/*
 * Slots are reserved
 */

FIXTURE(reserve) {
	struct kq q;
	enum collect_by by;
	int fd[3];
};

FIXTURE_VARIANT(reserve) {
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(reserve, ring) { BY_RING };
FIXTURE_VARIANT_ADD(reserve, call) { BY_SYSCALL };

/* Two slots, two registrations; a third eventfd is not registered. */
FIXTURE_SETUP(reserve)
{
	self->by = variant->by;
	if (!kq_setup(_metadata, &self->q, 2))
		return;
	for (int i = 0; i < 3; i++) {
		self->fd[i] = open_eventfd();
		ASSERT_LE(0, self->fd[i]);
	}
	ASSERT_EQ(1, kq_add(&self->q, self->fd[0], EPOLLIN, 0));
	ASSERT_EQ(1, kq_add(&self->q, self->fd[1], EPOLLIN, 1));
}

FIXTURE_TEARDOWN(reserve)
{
	kq_close(&self->q);
}

TEST_F(reserve, refuses_more_registrations_than_slots)
{
	EXPECT_EQ(-ENOSPC, kq_add(&self->q, self->fd[2], EPOLLIN, 2));
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->fd[2]));
	/* What is registered already is that before it is one too many. */
	EXPECT_EQ(-EEXIST, kq_add(&self->q, self->fd[1], EPOLLIN, 1));
	signal_eventfd(self->fd[1]);
	signal_eventfd(self->fd[2]);
	want(self->fd[1], EPOLLIN, EPOLLIN, 1);
	want_no_event();
}

TEST_F(reserve, frees_the_slot_of_a_registration_without_event)
{
	ASSERT_EQ(1, kq_del(&self->q, self->fd[0]));
	ASSERT_EQ(1, kq_add(&self->q, self->fd[2], EPOLLIN, 2));
	EXPECT_EQ(-ENOSPC, kq_add(&self->q, self->fd[0], EPOLLIN, 0));
	signal_eventfd(self->fd[2]);
	want(self->fd[2], EPOLLIN, EPOLLIN, 2);
}

TEST_F(reserve, frees_the_slot_of_a_registration_whose_event_was_claimed)
{
	signal_eventfd(self->fd[0]);
	want(self->fd[0], EPOLLIN, EPOLLIN, 0);
	ASSERT_EQ(1, kq_del(&self->q, self->fd[0]));
	EXPECT_EQ(1, kq_add(&self->q, self->fd[2], EPOLLIN, 2));
}

/* It is still in the way of others. */
TEST_F(reserve, keeps_a_cancelled_slot_until_it_is_claimed)
{
	signal_eventfd(self->fd[0]);
	ASSERT_EQ(1, kq_del(&self->q, self->fd[0]));
	EXPECT_EQ(-ENOSPC, kq_add(&self->q, self->fd[2], EPOLLIN, 2));
	EXPECT_EQ(-ENOSPC, kq_add(&self->q, self->fd[0], EPOLLIN, 0));
	want_no_event();
	EXPECT_EQ(1, kq_add(&self->q, self->fd[2], EPOLLIN, 2));
	signal_eventfd(self->fd[2]);
	want(self->fd[2], EPOLLIN, EPOLLIN, 2);
	want_no_event();
}

TEST_F(reserve, skips_cancelled_slots_between_events)
{
	signal_eventfd(self->fd[0]);
	signal_eventfd(self->fd[1]);
	ASSERT_EQ(1, kq_del(&self->q, self->fd[0]));
	want(self->fd[1], EPOLLIN, EPOLLIN, 1);
	want_no_event();
	EXPECT_EQ(1, kq_add(&self->q, self->fd[2], EPOLLIN, 2));
}

TEST_F(reserve, keeps_its_slot_through_modification)
{
	signal_eventfd(self->fd[0]);
	signal_eventfd(self->fd[1]);
	for (int i = 10; i < 20; i++) {
		ASSERT_EQ(1, kq_mod(&self->q, self->fd[0], EPOLLIN, i))
			TH_LOG("user data %d", i);
	}
	want(self->fd[1], EPOLLIN, EPOLLIN, 1);
	/* The ring was full, so the event may have to be let in. */
	want_event(&self->q, BY_SYSCALL, self->fd[0], EPOLLIN, EPOLLIN, 19);
	want_no_event();
}

/*
 * The ring
 */

FIXTURE(ring) {
	struct kq q;
	int fd[SLOTS];
	unsigned int nr;
};

FIXTURE_VARIANT(ring) {
	unsigned int slots;
};

FIXTURE_VARIANT_ADD(ring, with_1_slot) { 1 };
FIXTURE_VARIANT_ADD(ring, with_2_slots) { 2 };
FIXTURE_VARIANT_ADD(ring, with_8_slots) { 8 };

/* As many registrations as slots */
FIXTURE_SETUP(ring)
{
	self->nr = variant->slots;
	if (!kq_setup(_metadata, &self->q, self->nr))
		return;
	for (unsigned int i = 0; i < self->nr; i++) {
		self->fd[i] = open_eventfd();
		ASSERT_LE(0, self->fd[i]);
		ASSERT_EQ(1, kq_add(&self->q, self->fd[i], EPOLLIN, 100 + i));
	}
}

FIXTURE_TEARDOWN(ring)
{
	kq_close(&self->q);
}

TEST_F(ring, header_says_what_was_asked_for)
{
	const struct kevent_ring *ring = self->q.map.ring;

	EXPECT_EQ(0, ring->compat);
	EXPECT_EQ(0, ring->incompat);
	EXPECT_EQ(self->nr, ring->slots);
	EXPECT_LE(sizeof(struct kevent_slot), ring->slot_size);
	EXPECT_EQ(0, ring->slot_size % sizeof(__u64));
	EXPECT_LE((__u64)ring->slots * ring->slot_size,
		  self->q.params.slots_size);
	EXPECT_EQ(0, ring->flags);
	EXPECT_EQ(self->nr, ring->rings);
	for (size_t i = 0; i < ARRAY_SIZE(ring->resv); i++) {
		EXPECT_EQ(0, ring->resv[i])
			TH_LOG("resv[%zu]", i);
	}
}

TEST_F(ring, is_empty_at_first)
{
	for (unsigned int i = 0; i < self->nr; i++) {
		__u64 word = kevent_slot_word(kevent_ring_slot(&self->q.map, i));

		EXPECT_EQ(0, word & KEVENT_WORD_READY);
		/* Not posted yet is what it has to say. */
		EXPECT_EQ(0, KEVENT_WORD_GEN(word));
	}
	want_none(&self->q, BY_RING);
}

/* The position is the contract: which slot, and which generation */
TEST_F(ring, takes_positions_in_turn_for_many_laps)
{
	struct kevent_ring_map *map = &self->q.map;

	for (__u64 pos = 0; pos < 5 * self->nr + 3; pos++) {
		struct kevent_slot *slot = kevent_ring_slot(map, pos);
		unsigned int n = (pos * 3) % self->nr;
		__u64 word = kevent_slot_word(slot);

		EXPECT_EQ(0, word & KEVENT_WORD_READY);
		EXPECT_EQ((kevent_ring_gen(map, pos) - 1) & KEVENT_WORD_GEN_MASK,
			  KEVENT_WORD_GEN(word));

		signal_eventfd(self->fd[n]);
		word = kevent_slot_word(slot);
		EXPECT_EQ((__u64)EPOLLIN << KEVENT_WORD_VALUE_SHIFT |
			  (__u64)kevent_ring_gen(map, pos) << KEVENT_WORD_GEN_SHIFT |
			  KEVENT_WORD_READY, word)
			TH_LOG("position %llu, word %#llx", pos, word);
		EXPECT_EQ(100 + n, slot->user_data);
		EXPECT_EQ(self->fd[n], slot->ident);
		EXPECT_EQ(KEVENT_SOURCE_FD, slot->source);
		EXPECT_EQ(0, slot->flags);
		EXPECT_EQ(0, slot->tag);

		want_event(&self->q, BY_RING, self->fd[n], EPOLLIN, EPOLLIN,
			   100 + n);
		EXPECT_EQ(pos, map->claimed);
		/* Nobody but the kernel writes to it from now on. */
		EXPECT_EQ(KEVENT_WORD_CLAIMED(word), kevent_slot_word(slot));
	}
	want_none(&self->q, BY_RING);
}

TEST_F(ring, holds_an_event_of_every_registration)
{
	for (int lap = 0; lap < 4; lap++) {
		for (unsigned int i = 0; i < self->nr; i++)
			signal_eventfd(self->fd[i]);
		EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
		for (unsigned int i = 0; i < self->nr; i++)
			want_event(&self->q, BY_RING, self->fd[i], EPOLLIN,
				   EPOLLIN, 100 + i);
		want_none(&self->q, BY_RING);
	}
}

/* What the call collects, it claims in the ring, too. */
TEST_F(ring, and_call_take_turns)
{
	for (int i = 0; i < 20; i++) {
		enum collect_by by = i % 3 ? BY_SYSCALL : BY_RING;
		unsigned int n = i % self->nr;

		signal_eventfd(self->fd[n]);
		want_event(&self->q, by, self->fd[n], EPOLLIN, EPOLLIN, 100 + n);
		want_none(&self->q, BY_SYSCALL);
		want_none(&self->q, BY_RING);
	}
}

TEST_F(ring, gives_an_event_to_one_of_two_consumers)
{
	struct kq other = self->q;

	for (int i = 0; i < 20; i++) {
		struct kq *first = i % 3 ? &self->q : &other;
		struct kq *second = i % 3 ? &other : &self->q;
		unsigned int n = i % self->nr;

		signal_eventfd(self->fd[n]);
		want_event(first, BY_RING, self->fd[n], EPOLLIN, EPOLLIN,
			   100 + n);
		want_none(second, BY_RING);
	}
}

TEST_F(ring, can_be_entered_after_many_laps)
{
	struct kq late = self->q;

	for (unsigned int i = 0; i < 7 * self->nr + 1; i++) {
		unsigned int n = i % self->nr;

		signal_eventfd(self->fd[n]);
		want_event(&self->q, BY_RING, self->fd[n], EPOLLIN, EPOLLIN,
			   100 + n);
	}
	want_none(&late, BY_RING);
	EXPECT_EQ(self->q.map.cursor, late.map.cursor);
	signal_eventfd(self->fd[0]);
	want_event(&late, BY_RING, self->fd[0], EPOLLIN, EPOLLIN, 100);
	EXPECT_EQ(self->q.map.cursor, late.map.claimed);
}

TEST_F(ring, cannot_be_claimed_by_who_missed_a_merge)
{
	struct kevent_slot *slot;
	__u64 before, expect;
	struct source s;

	/* Make room for one that can report two things. */
	ASSERT_EQ(1, kq_del(&self->q, self->fd[0]));
	ASSERT_TRUE(unix_stream_open(&s));
	ASSERT_EQ(1, kq_add(&self->q, s.fd, EPOLLIN | EPOLLOUT, UDATA));
	slot = kevent_ring_slot(&self->q.map, 0);
	before = kevent_slot_word(slot);
	EXPECT_EQ(EPOLLOUT, KEVENT_WORD_VALUE(before));
	trigger_by_write(&s);
	expect = before;
	EXPECT_FALSE(__atomic_compare_exchange_n(&slot->word, &expect,
						 KEVENT_WORD_CLAIMED(before),
						 false, __ATOMIC_ACQ_REL,
						 __ATOMIC_RELAXED));
	/* Only the value can have changed. */
	EXPECT_EQ((__u32)before, (__u32)expect);
	EXPECT_TRUE(fd_value_ok(KEVENT_WORD_VALUE(expect), EPOLLIN | EPOLLOUT,
				EPOLLIN | EPOLLOUT));
	want_event(&self->q, BY_RING, s.fd, EPOLLIN | EPOLLOUT,
		   EPOLLIN | EPOLLOUT, UDATA);
	want_none(&self->q, BY_RING);
}

/*
 * A ring whose user left a slot unclaimed, so that it is in the way a lap later
 */

FIXTURE(stuck) {
	struct kq q;
	int fd[4];
};

/*
 * Positions 1 to 3 were claimed, 0 was not; sources 1 to 3 were active again.
 */
FIXTURE_SETUP(stuck)
{
	struct kq ahead;

	if (!kq_setup(_metadata, &self->q, 4))
		return;
	for (int i = 0; i < 4; i++) {
		self->fd[i] = open_eventfd();
		ASSERT_LE(0, self->fd[i]);
		ASSERT_EQ(1, kq_add(&self->q, self->fd[i], EPOLLIN, i));
		signal_eventfd(self->fd[i]);
	}
	ahead = self->q;
	ahead.map.cursor = 1;
	for (int i = 1; i < 4; i++)
		want_event(&ahead, BY_RING, self->fd[i], EPOLLIN, EPOLLIN, i);
	ASSERT_EQ(0, kevent_ring_flags(&self->q.map));
	for (int i = 1; i < 4; i++)
		signal_eventfd(self->fd[i]);
}

FIXTURE_TEARDOWN(stuck)
{
	kq_close(&self->q);
}

static void want_all_by_call(struct __test_metadata *_metadata, struct kq *q,
			     const int *fds, const int *order, int nr)
{
	for (int i = 0; i < nr; i++)
		want_event(q, BY_SYSCALL, fds[order[i]], EPOLLIN, EPOLLIN,
			   order[i]);
	want_none(q, BY_SYSCALL);
	want_none(q, BY_RING);
	EXPECT_EQ(0, kevent_ring_flags(&q->map));
}

TEST_F(stuck, ring_says_that_events_wait)
{
	EXPECT_EQ(KEVENT_RING_OVERFLOW, kevent_ring_flags(&self->q.map));
}

TEST_F(stuck, ring_lets_waiting_events_in_after_the_claim)
{
	static const int order[] = { 1, 2, 3 };

	want_event(&self->q, BY_RING, self->fd[0], EPOLLIN, EPOLLIN, 0);
	want_all_by_call(_metadata, &self->q, self->fd, order, 3);
}

TEST_F(stuck, slot_is_what_the_call_collects_first)
{
	static const int order[] = { 0, 1, 2, 3 };

	want_all_by_call(_metadata, &self->q, self->fd, order, 4);
}

TEST_F(stuck, ring_merges_into_waiting_events)
{
	static const int order[] = { 0, 1, 2, 3 };

	for (int i = 0; i < 4; i++)
		signal_eventfd(self->fd[i]);
	want_all_by_call(_metadata, &self->q, self->fd, order, 4);
}

TEST_F(stuck, ring_works_through_the_ring_again_afterwards)
{
	static const int order[] = { 0, 1, 2, 3 };

	want_all_by_call(_metadata, &self->q, self->fd, order, 4);
	for (int lap = 0; lap < 3; lap++) {
		for (int i = 0; i < 4; i++)
			signal_eventfd(self->fd[i]);
		for (int i = 0; i < 4; i++)
			want_event(&self->q, BY_RING, self->fd[i], EPOLLIN,
				   EPOLLIN, i);
		want_none(&self->q, BY_RING);
	}
}

TEST_F(stuck, ring_forgets_a_waiting_event_that_is_deleted)
{
	static const int order[] = { 0, 1, 3 };

	ASSERT_EQ(1, kq_del(&self->q, self->fd[2]));
	want_all_by_call(_metadata, &self->q, self->fd, order, 3);
}

TEST_F(stuck, ring_forgets_a_waiting_event_that_is_closed)
{
	static const int order[] = { 0, 1, 3 };

	close(self->fd[2]);
	want_all_by_call(_metadata, &self->q, self->fd, order, 3);
}

TEST_F(stuck, slot_of_a_deleted_registration_is_in_nobodys_way)
{
	static const int order[] = { 1, 2, 3 };

	ASSERT_EQ(1, kq_del(&self->q, self->fd[0]));
	want_all_by_call(_metadata, &self->q, self->fd, order, 3);
}

TEST_F(stuck, ring_gives_waiting_events_the_new_user_data)
{
	struct ukevent evs[8];
	int nr = 0;

	ASSERT_EQ(1, kq_mod(&self->q, self->fd[2], EPOLLIN, 77));
	while (nr < 4) {
		int ret = kq_getevents(&self->q, evs + nr, 1, 4 - nr,
				       PATIENCE_MS);

		ASSERT_LT(0, ret);
		nr += ret;
	}
	for (int i = 0; i < 4; i++) {
		for (int n = 0; n < 4; n++) {
			if (evs[i].ident != (__u64)self->fd[n])
				continue;
			EXPECT_EQ(n == 2 ? 77 : n, evs[i].user_data);
		}
	}
	want_none(&self->q, BY_SYSCALL);
}

TEST_HARNESS_MAIN
