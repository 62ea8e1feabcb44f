// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: a registration belongs to the descriptor that was named.  What ends
 * it, what does not, and what has to survive the end.
 */
#include "kevent_util.h"

#include <sys/prctl.h>
#include <sys/signalfd.h>

#define SLOTS 8
#define HIGH_FD 100	/* where no descriptor is unless a test puts it there */

/* What main() does if it is started by exec_child() */
#define EXEC_ARG "sleep-until-eof"

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE	2
#endif

FIXTURE(lifetime) {
	struct kq q;
	int fd;			/* an eventfd */
	int copy;		/* another descriptor of it, never registered */
};

FIXTURE_SETUP(lifetime)
{
	self->fd = open_eventfd();
	ASSERT_LE(0, self->fd);
	self->copy = dup(self->fd);
	ASSERT_LE(0, self->copy);
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(lifetime)
{
	kq_close(&self->q);
}

/* One descriptor more that can be registered, at a number of its own */
static int dup_high(int fd)
{
	return fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
}

static int sys_close_range(unsigned int first, unsigned int last,
			   unsigned int flags)
{
	return syscall(__NR_close_range, first, last, flags);
}

/* Is @fd, named @udata, still registered?  Its file is active at any rate. */
static void __want_alive(struct __test_metadata *_metadata, int line,
			 struct kq *q, int file, int fd, __u64 udata)
{
	signal_eventfd(file);
	__want_event(_metadata, line, q, BY_RING, fd, EPOLLIN, EPOLLIN, udata);
	__want_none(_metadata, line, q, BY_SYSCALL);
}

static void __want_ended(struct __test_metadata *_metadata, int line,
			 struct kq *q, int file)
{
	__want_none(_metadata, line, q, BY_RING);
	signal_eventfd(file);
	__want_none(_metadata, line, q, BY_RING);
	__want_none(_metadata, line, q, BY_SYSCALL);
}

#define want_alive(fd, udata) \
	__want_alive(_metadata, __LINE__, &self->q, self->copy, fd, udata)
#define want_ended() \
	__want_ended(_metadata, __LINE__, &self->q, self->copy)

/* All slots are free: nothing that has ended holds one. */
static void __want_all_free(struct __test_metadata *_metadata, int line,
			    struct kq *q)
{
	int fds[SLOTS];

	for (int i = 0; i < SLOTS; i++) {
		fds[i] = open_eventfd();
		EXPECT_EQ(1, kq_add(q, fds[i], EPOLLIN, i))
			TH_LOG("line %d: slot %d", line, i);
	}
	for (int i = 0; i < SLOTS; i++) {
		signal_eventfd(fds[i]);
		__want_event(_metadata, line, q, BY_RING, fds[i], EPOLLIN,
			     EPOLLIN, i);
		close(fds[i]);
	}
	__want_none(_metadata, line, q, BY_SYSCALL);
}

#define want_all_free(q) __want_all_free(_metadata, __LINE__, q)

TEST_F(lifetime, ends_with_close_while_a_duplicate_is_open)
{
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	ASSERT_EQ(0, close(self->fd));
	want_ended();
	EXPECT_EQ(-EBADF, kq_del(&self->q, self->fd));
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->copy));
	want_all_free(&self->q);
}

TEST_F(lifetime, of_the_duplicate_is_its_own)
{
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	ASSERT_EQ(1, kq_add(&self->q, self->copy, EPOLLIN, 2));
	ASSERT_EQ(0, close(self->fd));
	want_alive(self->copy, 2);
}

TEST_F(lifetime, begins_anew_with_the_duplicate)
{
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	ASSERT_EQ(0, close(self->fd));
	ASSERT_EQ(1, kq_add(&self->q, self->copy, EPOLLIN, 2));
	want_alive(self->copy, 2);
}

TEST_F(lifetime, of_a_number_that_is_used_again_begins_anew)
{
	int other = open_eventfd();

	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	ASSERT_EQ(0, close(self->fd));
	ASSERT_EQ(self->fd, dup2(other, self->fd));
	/* The new file has not inherited anything. */
	EXPECT_EQ(-ENOENT, kq_mod(&self->q, self->fd, EPOLLIN, 2));
	signal_eventfd(other);
	want_ended();
	drain_eventfd(other);
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 2));
	signal_eventfd(self->copy);
	want_none(&self->q, BY_RING);
	signal_eventfd(other);
	want_event(&self->q, BY_RING, self->fd, EPOLLIN, EPOLLIN, 2);
	want_none(&self->q, BY_RING);
}

TEST_F(lifetime, of_a_number_that_gets_the_same_file_again_begins_anew)
{
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	ASSERT_EQ(0, close(self->fd));
	ASSERT_EQ(self->fd, dup2(self->copy, self->fd));
	want_ended();
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->fd));
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 2));
	want_event(&self->q, BY_RING, self->fd, EPOLLIN, EPOLLIN, 2);
}

TEST_F(lifetime, unclaimed_event_cannot_be_claimed_after_close)
{
	struct ukevent ev;

	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	signal_eventfd(self->fd);
	ASSERT_EQ(0, close(self->fd));
	EXPECT_EQ(0, kq_collect(&self->q, BY_SYSCALL, &ev, 1));
	want_ended();
	want_all_free(&self->q);
}

TEST_F(lifetime, unclaimed_event_cannot_be_claimed_from_the_ring_after_close)
{
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	signal_eventfd(self->fd);
	ASSERT_EQ(0, close(self->fd));
	want_ended();
	want_all_free(&self->q);
}

TEST_F(lifetime, ends_when_dup2_replaces_the_descriptor)
{
	int other = open_eventfd();

	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	signal_eventfd(self->fd);
	ASSERT_EQ(self->fd, dup2(other, self->fd));
	signal_eventfd(other);
	want_ended();
}

/* The descriptor is what it was: the same number for the same open file. */
TEST_F(lifetime, goes_on_when_dup3_replaces_the_descriptor_by_the_same_file)
{
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	ASSERT_EQ(self->fd, dup3(self->copy, self->fd, O_CLOEXEC));
	want_alive(self->fd, 1);
	EXPECT_EQ(1, kq_del(&self->q, self->fd));
}

/* dup2() of a descriptor to itself does nothing. */
TEST_F(lifetime, goes_on_when_dup2_replaces_nothing)
{
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	ASSERT_EQ(self->fd, dup2(self->fd, self->fd));
	want_alive(self->fd, 1);
	ASSERT_EQ(0, close(dup(self->fd)));
	want_alive(self->fd, 1);
}

TEST_F(lifetime, ends_with_close_range)
{
	int fds[4];

	for (int i = 0; i < 4; i++) {
		fds[i] = dup_high(self->fd);
		ASSERT_LE(HIGH_FD, fds[i]);
		ASSERT_EQ(1, kq_add(&self->q, fds[i], EPOLLIN, i));
	}
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 9));
	ASSERT_EQ(0, sys_close_range(fds[0], fds[3], 0));
	want_alive(self->fd, 9);
	close(self->fd);
	want_all_free(&self->q);
}

TEST_F(lifetime, ends_with_the_last_close_of_an_active_file)
{
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	signal_eventfd(self->fd);
	close(self->copy);
	close(self->fd);
	want_none(&self->q, BY_RING);
	want_all_free(&self->q);
}

TEST_F(lifetime, ends_in_every_queue)
{
	struct kq more[3];

	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(0, kq_open(&more[i], SLOTS));
		ASSERT_EQ(1, kq_add(&more[i], self->fd, EPOLLIN, 10 + i));
	}
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	signal_eventfd(self->fd);
	ASSERT_EQ(0, close(self->fd));
	want_ended();
	for (int i = 0; i < 3; i++) {
		want_none(&more[i], BY_RING);
		want_all_free(&more[i]);
		kq_close(&more[i]);
	}
}

TEST_F(lifetime, ends_with_the_queue)
{
	struct kq more;

	for (int i = 0; i < 100; i++) {
		ASSERT_EQ(0, kq_open(&more, SLOTS));
		ASSERT_EQ(1, kq_add(&more, self->fd, EPOLLIN, i));
		/* With and without an event in the ring */
		if (i % 2)
			signal_eventfd(self->copy);
		kq_close(&more);
		signal_eventfd(self->copy);
		drain_eventfd(self->copy);
	}
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	want_alive(self->fd, 1);
}

/* What a thread does in a file holds it, but does not hold the descriptor. */
static void *read_blocking(void *arg)
{
	int *args = arg;
	__u64 val;

	__atomic_store_n(&args[1], syscall(__NR_gettid), __ATOMIC_RELEASE);
	return (void *)(long)read(args[0], &val, sizeof(val));
}

TEST_F(lifetime, ends_with_close_while_a_thread_uses_the_file)
{
	int efd = eventfd(0, EFD_CLOEXEC);
	int args[2] = { efd, 0 };
	int copy = dup(efd);
	pthread_t thread;

	ASSERT_LE(0, copy);
	ASSERT_EQ(1, kq_add(&self->q, efd, EPOLLIN, 1));
	ASSERT_EQ(0, pthread_create(&thread, NULL, read_blocking, args));
	wait_until_asleep(&args[1], NULL);
	ASSERT_EQ(0, close(efd));
	signal_eventfd(copy);
	pthread_join(thread, NULL);
	__want_ended(_metadata, __LINE__, &self->q, copy);
}

/*
 * Other processes
 */

TEST_F(lifetime, goes_on_when_a_child_closes_its_copy)
{
	int other = open_eventfd();
	pid_t pid;

	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(close(self->fd));
	EXPECT_EQ(0, reap(pid));
	want_alive(self->fd, 1);

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(dup2(other, self->fd) != self->fd);
	EXPECT_EQ(0, reap(pid));
	want_alive(self->fd, 1);
}

TEST_F(lifetime, ends_with_close_while_a_child_has_a_copy)
{
	int s[2];
	pid_t pid;

	ASSERT_EQ(0, sync_open(s));
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(s[0]);
		sync_wait(s[1]);
		_exit(0);
	}
	ASSERT_EQ(0, close(self->fd));
	want_ended();
	close(s[0]);
	EXPECT_EQ(0, reap(pid));
}

enum how_to_end {
	BY_CLOSE,
	BY_EXIT,
	BY_KILL,
	BY_EXEC,
};

/* The test program again; all that it keeps is @sock. */
static void exec_child(int sock)
{
	char number[16];
	char * const argv[] = { "/proc/self/exe", EXEC_ARG, number, NULL };

	snprintf(number, sizeof(number), "%d", sock);
	fcntl(sock, F_SETFD, 0);
	execv(argv[0], argv);
	_exit(2);
}

/*
 * A child registers a descriptor that only it has, says so, and ends it in some
 * way once it is told to.
 */
static pid_t registering_child(const struct kq *q, int file, int s[2],
			       enum how_to_end how, unsigned long clone_flags)
{
	pid_t pid = syscall(__NR_clone, clone_flags | SIGCHLD, 0, 0, 0, 0);
	int fd;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	fd = fcntl(file, F_DUPFD_CLOEXEC, HIGH_FD);
	if (fd < 0 || kq_add(q, fd, EPOLLIN, 7) != 1)
		_exit(1);
	sync_post(s[1]);
	sync_wait(s[1]);
	switch (how) {
	case BY_CLOSE:
		close(fd);
		sync_post(s[1]);
		sync_wait(s[1]);
		_exit(0);
	case BY_EXIT:
		_exit(0);
	case BY_KILL:
		kill(getpid(), SIGKILL);
		break;
	case BY_EXEC:
		exec_child(s[1]);
	}
	_exit(2);
}

struct child {
	int s[2];
	pid_t pid;
};

FIXTURE(child) {
	struct kq q;
	int file;		/* an eventfd that the child registers */
	struct child c;
};

FIXTURE_VARIANT(child) {
	enum how_to_end how;
	unsigned long clone_flags;
	/* Whether the descriptor is there as long as the parent is */
	bool stays;
};

FIXTURE_VARIANT_ADD(child, closes) { BY_CLOSE, 0, false };
FIXTURE_VARIANT_ADD(child, exits) { BY_EXIT, 0, false };
FIXTURE_VARIANT_ADD(child, is_killed) { BY_KILL, 0, false };
FIXTURE_VARIANT_ADD(child, executes) { BY_EXEC, 0, false };
/* The same with a descriptor table that the parent uses, too */
FIXTURE_VARIANT_ADD(child, sharing_closes) { BY_CLOSE, CLONE_FILES, false };
FIXTURE_VARIANT_ADD(child, sharing_exits) { BY_EXIT, CLONE_FILES, true };
FIXTURE_VARIANT_ADD(child, sharing_is_killed) { BY_KILL, CLONE_FILES, true };
/* It is a private copy of the table that exec closes descriptors in. */
FIXTURE_VARIANT_ADD(child, sharing_executes) { BY_EXEC, CLONE_FILES, true };

FIXTURE_SETUP(child)
{
	self->file = open_eventfd();
	ASSERT_LE(0, self->file);
	ASSERT_EQ(0, sync_open(self->c.s));
	if (!kq_setup(_metadata, &self->q, SLOTS))
		return;
	self->c.pid = registering_child(&self->q, self->file, self->c.s,
					variant->how, variant->clone_flags);
	ASSERT_LT(0, self->c.pid);
	ASSERT_TRUE(sync_wait(self->c.s[0]));
}

FIXTURE_TEARDOWN(child)
{
	kq_close(&self->q);
	if (self->c.pid > 0) {
		kill(self->c.pid, SIGKILL);
		reap(self->c.pid);
	}
}

/* Returns when the child has done it. */
static void child_ends_it(struct __test_metadata *_metadata,
			  struct child *c, enum how_to_end how)
{
	sync_post(c->s[0]);
	if (how == BY_CLOSE || how == BY_EXEC) {
		EXPECT_TRUE(sync_wait(c->s[0]));
		return;
	}
	EXPECT_EQ(how == BY_KILL ? 128 + SIGKILL : 0, reap(c->pid));
	c->pid = 0;
}

TEST_F(child, descriptor_is_watched_by_all_who_have_the_queue)
{
	__want_alive(_metadata, __LINE__, &self->q, self->file, HIGH_FD, 7);
	child_ends_it(_metadata, &self->c, variant->how);
}

TEST_F(child, ends_its_registration)
{
	child_ends_it(_metadata, &self->c, variant->how);
	if (variant->stays) {
		__want_alive(_metadata, __LINE__, &self->q, self->file, HIGH_FD,
			     7);
		EXPECT_EQ(1, kq_del(&self->q, HIGH_FD));
	} else {
		__want_ended(_metadata, __LINE__, &self->q, self->file);
		want_all_free(&self->q);
	}
}

TEST_F(child, ends_its_registration_with_an_event_pending)
{
	signal_eventfd(self->file);
	child_ends_it(_metadata, &self->c, variant->how);
	if (variant->stays) {
		want_event(&self->q, BY_RING, HIGH_FD, EPOLLIN, EPOLLIN, 7);
		EXPECT_EQ(1, kq_del(&self->q, HIGH_FD));
	} else {
		__want_ended(_metadata, __LINE__, &self->q, self->file);
		want_all_free(&self->q);
	}
}

/* A thread that leaves the descriptor table closes copies only. */
static void *unshare_and_close(void *arg)
{
	int fd = *(int *)arg;

	if (sys_close_range(fd, fd, CLOSE_RANGE_UNSHARE))
		return (void *)1L;
	return (void *)(long)(fcntl(fd, F_GETFD) != -1);
}

TEST_F(lifetime, goes_on_when_a_thread_closes_its_own_copy)
{
	pthread_t thread;
	void *ret;

	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	ASSERT_EQ(0, pthread_create(&thread, NULL, unshare_and_close,
				    &self->fd));
	pthread_join(thread, &ret);
	EXPECT_EQ(NULL, ret);
	want_alive(self->fd, 1);
}

/*
 * Descriptors that are sent
 */

static int send_fd(int sock, int fd)
{
	char c = 0, control[CMSG_SPACE(sizeof(int))] = { };
	struct iovec iov = { &c, 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	return sendmsg(sock, &msg, 0) == 1 ? 0 : -errno;
}

static int receive_fd(int sock)
{
	char c, control[CMSG_SPACE(sizeof(int))] = { };
	struct iovec iov = { &c, 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	int fd = -1;

	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) != 1)
		return -errno;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(int));
	return fd;
}

/* No descriptor is left, but the file is: it is on its way. */
TEST_F(lifetime, ends_with_close_while_the_file_is_in_flight)
{
	int s[2];
	int fd;

	ASSERT_EQ(0, sync_open(s));
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	signal_eventfd(self->fd);
	ASSERT_EQ(0, send_fd(s[0], self->fd));
	ASSERT_EQ(0, close(self->copy));
	ASSERT_EQ(0, close(self->fd));
	want_none(&self->q, BY_RING);

	/* It even gets the number back, but not the registration. */
	fd = receive_fd(s[1]);
	EXPECT_LE(0, fd);
	self->copy = fd;
	want_ended();
	EXPECT_EQ(-ENOENT, kq_del(&self->q, fd));
	EXPECT_EQ(1, kq_add(&self->q, fd, EPOLLIN, 2));
}

TEST_F(lifetime, ends_with_the_file_that_never_arrives)
{
	int s[2];

	ASSERT_EQ(0, sync_open(s));
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	ASSERT_EQ(0, send_fd(s[0], self->fd));
	close(self->copy);
	close(self->fd);
	close(s[0]);
	close(s[1]);
	want_none(&self->q, BY_RING);
	want_all_free(&self->q);
}

TEST_F(lifetime, ends_with_close_by_who_sent_the_file_away)
{
	int s[2];
	pid_t pid;

	ASSERT_EQ(0, sync_open(s));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		int fd;

		close(s[0]);
		close(self->fd);
		close(self->copy);
		fd = receive_fd(s[1]);
		sync_post(s[1]);
		while (sync_wait(s[1])) {
			signal_eventfd(fd);
			sync_post(s[1]);
		}
		_exit(fd < 0);
	}
	close(s[1]);
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	ASSERT_EQ(0, send_fd(s[0], self->fd));
	ASSERT_TRUE(sync_wait(s[0]));
	sync_post(s[0]);
	ASSERT_TRUE(sync_wait(s[0]));
	want_event(&self->q, BY_RING, self->fd, EPOLLIN, EPOLLIN, 1);

	close(self->copy);
	close(self->fd);
	sync_post(s[0]);
	ASSERT_TRUE(sync_wait(s[0]));
	want_none(&self->q, BY_RING);
	close(s[0]);
	EXPECT_EQ(0, reap(pid));
}

/* Adds a source of its own, and collects its event and one that was there. */
static int use_received_queue(int sock)
{
	struct ukevent evs[2];
	struct kq q = { .fd = receive_fd(sock) };
	int fd = dup_high(open_eventfd());

	if (q.fd < 0 || kq_add(&q, fd, EPOLLIN, 20) != 1)
		return 1;
	signal_eventfd(fd);
	if (kq_getevents(&q, evs, 2, 2, PATIENCE_MS) != 2)
		return 2;
	if (evs[0].user_data != 10 || evs[1].user_data != 20)
		return 3;
	signal_eventfd(fd);
	sync_post(sock);
	sync_wait(sock);
	return 0;
}

TEST_F(lifetime, queue_can_be_sent_to_another_process)
{
	struct kq q;
	int s[2];
	pid_t pid;

	ASSERT_EQ(0, sync_open(s));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(s[0]);
		_exit(use_received_queue(s[1]));
	}
	close(s[1]);
	ASSERT_EQ(0, kq_open(&q, SLOTS));
	ASSERT_EQ(1, kq_add(&q, self->fd, EPOLLIN, 10));
	signal_eventfd(self->fd);
	ASSERT_EQ(0, send_fd(s[0], q.fd));
	if (sync_wait(s[0])) {
		/* The child has left an event for the parent. */
		want_event(&q, BY_RING, HIGH_FD, EPOLLIN, EPOLLIN, 20);
	}
	close(s[0]);
	EXPECT_EQ(0, reap(pid));
	want_none(&q, BY_RING);
	kq_close(&q);
}

/*
 * Many
 */

#define MANY 1000

TEST_F(lifetime, of_many_registrations_ends_at_once)
{
	struct rlimit lim;
	struct kq q;
	int fd;

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &lim));
	if (lim.rlim_cur < HIGH_FD + MANY) {
		lim.rlim_cur = HIGH_FD + MANY;
		ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &lim));
	}
	ASSERT_EQ(0, kq_open(&q, MANY));
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < MANY; i++) {
			/* Half of them are descriptors of one file. */
			fd = i % 2 ? open_eventfd() : self->fd;
			ASSERT_EQ(HIGH_FD + i, dup_high(fd));
			if (i % 2)
				close(fd);
			ASSERT_EQ(1, kq_add(&q, HIGH_FD + i, EPOLLIN, i))
				TH_LOG("number %d of round %d", i, round);
		}
		signal_eventfd(self->fd);
		for (int i = 0; i < MANY / 4; i++) {
			struct ukevent ev;

			ASSERT_EQ(1, kq_collect(&q, BY_RING, &ev, 1));
			EXPECT_EQ(0, ev.user_data % 2);
		}
		ASSERT_EQ(0, sys_close_range(HIGH_FD, HIGH_FD + MANY - 1, 0));
		signal_eventfd(self->fd);
		/* This claims the cancelled slots, too. */
		want_none(&q, BY_RING);
		drain_eventfd(self->fd);
	}
	kq_close(&q);
}

/*
 * Threads that add, delete, modify, write, replace and close, all on the same
 * few descriptors, while others collect.  The kernel has to survive it, and the
 * queue to be whole afterwards.
 */

#define STORM_FDS 6
#define STORM_MS 1500

struct storm {
	struct kq q;
	int stop;
	int bad_returns;
	int seed;
};

static void *storm_change(void *arg)
{
	struct storm *st = arg;
	unsigned int rnd = __atomic_add_fetch(&st->seed, 1, __ATOMIC_RELAXED);

	while (!__atomic_load_n(&st->stop, __ATOMIC_RELAXED)) {
		int fd, ret = 1;

		rnd = rnd * 1103515245 + 12345;
		fd = HIGH_FD + (rnd >> 16) % STORM_FDS;
		switch ((rnd >> 20) % 8) {
		case 0:
			ret = kq_add(&st->q, fd, EPOLLIN | EPOLLOUT, fd);
			break;
		case 1:
			ret = kq_del(&st->q, fd);
			break;
		case 2:
			ret = kq_mod(&st->q, fd, EPOLLIN, fd);
			break;
		case 3: {
			int new = open_eventfd();

			dup3(new, fd, O_CLOEXEC);
			close(new);
			break;
		}
		case 4:
			/* Two numbers, one file */
			dup3(HIGH_FD + (rnd >> 24) % STORM_FDS, fd, O_CLOEXEC);
			break;
		case 5:
			close(fd);
			break;
		default:
			signal_eventfd(fd);
		}
		if (ret != 1 && ret != -EBADF && ret != -ENOENT &&
		    ret != -EEXIST && ret != -ENOSPC)
			__atomic_fetch_add(&st->bad_returns, 1,
					   __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *storm_collect(void *arg)
{
	struct storm *st = arg;
	struct kq q = st->q;
	struct ukevent evs[SLOTS];

	for (unsigned int i = 0; !__atomic_load_n(&st->stop, __ATOMIC_RELAXED);
	     i++) {
		int nr;

		if (i % 8)
			nr = kq_collect(&q, BY_RING, evs, SLOTS);
		else
			nr = kq_getevents(&q, evs, 1, SLOTS, 1);
		for (int n = 0; n < nr; n++)
			nr = evs[n].user_data == evs[n].ident ? nr : -1;
		if (nr < 0)
			__atomic_fetch_add(&st->bad_returns, 1,
					   __ATOMIC_RELAXED);
	}
	return NULL;
}

TEST_F_TIMEOUT(lifetime, storm_of_changes_leaves_the_queue_whole, 60)
{
	static void *(* const fns[])(void *) = {
		storm_change, storm_change, storm_change, storm_collect,
		storm_collect,
	};
	pthread_t threads[ARRAY_SIZE(fns)];
	struct storm st = { };

	ASSERT_EQ(0, kq_open(&st.q, SLOTS));
	for (size_t i = 0; i < ARRAY_SIZE(fns); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, fns[i], &st));
	sleep_ms(STORM_MS);
	__atomic_store_n(&st.stop, 1, __ATOMIC_RELAXED);
	for (size_t i = 0; i < ARRAY_SIZE(fns); i++)
		pthread_join(threads[i], NULL);
	EXPECT_EQ(0, st.bad_returns);

	ASSERT_EQ(0, sys_close_range(HIGH_FD, HIGH_FD + STORM_FDS - 1, 0));
	want_none(&st.q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&st.q.map));
	want_all_free(&st.q);
	kq_close(&st.q);
}

/*
 * signalfd lets its waiters wait at the process that polled it.  The wait queue
 * is gone when that process is, whatever becomes of the descriptor.
 */

static int open_signalfd(int sig)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, sig);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

TEST_F(lifetime, ends_with_the_process_whose_signals_were_watched)
{
	for (int i = 0; i < 20; i++) {
		pid_t pid = fork();

		ASSERT_LE(0, pid);
		if (!pid) {
			int fd = open_signalfd(SIGUSR1);

			if (kq_add(&self->q, fd, EPOLLIN, i) != 1)
				_exit(1);
			kill(getpid(), SIGUSR1);
			_exit(0);
		}
		EXPECT_EQ(0, reap(pid));
		want_none(&self->q, BY_SYSCALL);
	}
	want_all_free(&self->q);
}

TEST_F(lifetime, survives_the_process_whose_signals_were_watched)
{
	int fd = open_signalfd(SIGUSR1);

	ASSERT_LE(0, fd);
	for (int i = 0; i < 20; i++) {
		pid_t pid;

		/* The same descriptors, other signal handlers */
		pid = syscall(__NR_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
		ASSERT_LE(0, pid);
		if (!pid)
			_exit(kq_add(&self->q, fd, EPOLLIN, i) != 1);
		EXPECT_EQ(0, reap(pid));
		/* Nobody may look for who waits at what is gone. */
		kill(getpid(), SIGUSR1);
		if (i % 2)
			kq_mod(&self->q, fd, EPOLLIN, i);
		kill(getpid(), SIGUSR1);
		EXPECT_EQ(1, kq_del(&self->q, fd));
		want_none(&self->q, BY_SYSCALL);
	}
	close(fd);
	want_all_free(&self->q);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], EXEC_ARG)) {
		int sock = atoi(argv[2]);

		sync_post(sock);
		while (sync_wait(sock))
			;
		return 0;
	}
	return test_harness_run(argc, argv);
}
