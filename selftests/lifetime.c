// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: how long a registration lasts.  One of a file belongs to the descriptor
 * that was named, others to the queue.  What ends it, what does not, what has to
 * survive the end, and that no event comes after it.
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

/* Both use the file and the queue, in turn. */
TEST_F(lifetime, goes_on_for_both_after_a_fork)
{
	int s[2];
	pid_t pid;

	ASSERT_EQ(0, sync_open(s));
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		struct ukevent ev;

		close(s[0]);
		signal_eventfd(self->fd);
		sync_post(s[1]);
		for (int by = BY_RING; by <= BY_SYSCALL; by++) {
			sync_wait(s[1]);
			if (kq_collect(&self->q, by, &ev, 1) != 1 ||
			    ev.ident != self->fd || ev.user_data != 1)
				_exit(1 + by);
			sync_post(s[1]);
		}
		_exit(0);
	}
	close(s[1]);
	ASSERT_TRUE(sync_wait(s[0]));
	want_event(&self->q, BY_RING, self->fd, EPOLLIN, EPOLLIN, 1);
	for (int by = BY_RING; by <= BY_SYSCALL; by++) {
		signal_eventfd(self->copy);
		sync_post(s[0]);
		ASSERT_TRUE(sync_wait(s[0]));
		want_none(&self->q, BY_RING);
	}
	EXPECT_EQ(0, reap(pid));
	want_alive(self->fd, 1);
}

/* The number that it inherited names the registration of its parent. */
TEST_F(lifetime, can_be_changed_and_ended_by_a_child)
{
	pid_t pid;

	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (kq_add(&self->q, self->fd, EPOLLIN, 2) != -EEXIST)
			_exit(1);
		_exit(kq_mod(&self->q, self->fd, EPOLLIN, 2) != 1);
	}
	EXPECT_EQ(0, reap(pid));
	/* It has a new name, but does not belong to the child. */
	want_alive(self->fd, 2);

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(kq_del(&self->q, self->fd) != 1);
	EXPECT_EQ(0, reap(pid));
	want_ended();
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->fd));
	want_all_free(&self->q);
}

/* It belongs to the child that made it, though the parent has the number too. */
TEST_F(lifetime, ends_with_the_child_that_added_what_it_inherited)
{
	int s[2];
	pid_t pid;

	ASSERT_EQ(0, sync_open(s));
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(s[0]);
		if (kq_del(&self->q, self->fd) != 1 ||
		    kq_add(&self->q, self->fd, EPOLLIN, 5) != 1)
			_exit(1);
		sync_post(s[1]);
		sync_wait(s[1]);
		_exit(0);
	}
	close(s[1]);
	ASSERT_TRUE(sync_wait(s[0]));
	EXPECT_EQ(-EEXIST, kq_add(&self->q, self->fd, EPOLLIN, 6));
	want_alive(self->fd, 5);
	ASSERT_EQ(0, close(self->fd));
	want_alive(self->fd, 5);
	close(s[0]);
	EXPECT_EQ(0, reap(pid));
	want_ended();
	ASSERT_EQ(self->fd, dup2(self->copy, self->fd));
	EXPECT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 7));
	want_alive(self->fd, 7);
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

/* All events of the ring; the user data is at most 31. */
static unsigned int collect_user_data(struct kq *q)
{
	unsigned int seen = 0;
	struct ukevent ev;

	while (kq_collect(q, BY_RING, &ev, 1))
		seen |= 1U << ev.user_data;
	return seen;
}

/* Registers a file that it was sent in a queue that it was sent. */
static int use_received_file_and_queue(int sock)
{
	struct kq q = { .fd = receive_fd(sock) };
	int received = receive_fd(sock);
	int fd = dup_high(received);

	if (fd < 0 || kq_add(&q, fd, EPOLLIN, 2) != 1)
		return 1;
	sync_post(sock);
	sync_wait(sock);
	close(fd);
	sync_post(sock);
	sync_wait(sock);
	if (dup_high(received) != fd || kq_add(&q, fd, EPOLLIN, 3) != 1)
		return 2;
	sync_post(sock);
	sync_wait(sock);
	return 0;
}

TEST_F(lifetime, of_a_file_that_was_sent_with_the_queue_is_its_own)
{
	int s[2];
	pid_t pid;

	ASSERT_EQ(0, sync_open(s));
	ASSERT_EQ(1, kq_add(&self->q, self->fd, EPOLLIN, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* It has nothing but what it gets. */
		kq_close(&self->q);
		close(self->fd);
		close(self->copy);
		close(s[0]);
		_exit(use_received_file_and_queue(s[1]));
	}
	close(s[1]);
	ASSERT_EQ(0, send_fd(s[0], self->q.fd));
	ASSERT_EQ(0, send_fd(s[0], self->fd));
	ASSERT_TRUE(sync_wait(s[0]));
	signal_eventfd(self->copy);
	EXPECT_EQ(1U << 1 | 1U << 2, collect_user_data(&self->q));

	/* The child has closed the one. */
	sync_post(s[0]);
	ASSERT_TRUE(sync_wait(s[0]));
	signal_eventfd(self->copy);
	EXPECT_EQ(1U << 1, collect_user_data(&self->q));

	/* The parent closes the other. */
	sync_post(s[0]);
	ASSERT_TRUE(sync_wait(s[0]));
	close(self->fd);
	signal_eventfd(self->copy);
	EXPECT_EQ(1U << 3, collect_user_data(&self->q));
	close(s[0]);
	EXPECT_EQ(0, reap(pid));
	want_ended();
	want_all_free(&self->q);
}

/*
 * Every mode, and every way in which a descriptor can go
 */

FIXTURE(mode) {
	struct kq q;
};

FIXTURE_VARIANT(mode) {
	__u32 flags;
};

FIXTURE_VARIANT_ADD(mode, level) { KEVENT_LEVEL };
FIXTURE_VARIANT_ADD(mode, one_shot) { KEVENT_EDGE | KEVENT_ONESHOT };
FIXTURE_VARIANT_ADD(mode, level_one_shot) { KEVENT_LEVEL | KEVENT_ONESHOT };
FIXTURE_VARIANT_ADD(mode, dispatch) { KEVENT_EDGE | KEVENT_DISPATCH };
FIXTURE_VARIANT_ADD(mode, level_dispatch) { KEVENT_LEVEL | KEVENT_DISPATCH };
FIXTURE_VARIANT_ADD(mode, disabled) { KEVENT_EDGE | KEVENT_DISABLED };
FIXTURE_VARIANT_ADD(mode, level_disabled) { KEVENT_LEVEL | KEVENT_DISABLED };
FIXTURE_VARIANT_ADD(mode, exclusive) { KEVENT_EDGE | KEVENT_EXCLUSIVE };

FIXTURE_SETUP(mode)
{
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(mode)
{
	kq_close(&self->q);
}

enum state {
	IDLE,
	READY,
	CLAIMED,		/* and then ready again */
	NR_STATES,
};

/* False if that is not possible */
static bool bring_to_state(struct kq *q, int fd, __u32 flags, enum state state)
{
	struct ukevent ev;

	if (kq_add_mode(q, fd, EPOLLIN, flags, 1) != 1)
		return false;
	if (state >= READY)
		signal_eventfd(fd);
	if (state < CLAIMED)
		return true;
	if (kq_collect(q, BY_SYSCALL, &ev, 1) != !(flags & KEVENT_DISABLED))
		return false;
	signal_eventfd(fd);
	return true;
}

enum path {
	PATH_CLOSE,
	PATH_DUP2,
	PATH_CLOSE_RANGE,
	PATH_LAST_CLOSE,	/* of the file, not only of the descriptor */
	PATH_IN_FLIGHT,		/* the file is sent and never received */
	PATH_EXIT,
	PATH_KILL,
	PATH_EXEC,
	NR_PATHS,
};

/* A child registers the descriptor, and is gone when this returns. */
static bool end_with_process(struct kq *q, int fd, __u32 flags,
			     enum state state, enum path path)
{
	int s[2];
	pid_t pid;
	bool ok;

	if (sync_open(s))
		return false;
	pid = fork();
	if (!pid) {
		close(s[0]);
		if (!bring_to_state(q, fd, flags, state))
			_exit(1);
		if (path == PATH_EXEC)
			exec_child(s[1]);
		sync_post(s[1]);
		if (path == PATH_KILL)
			kill(getpid(), SIGKILL);
		_exit(0);
	}
	close(s[1]);
	ok = sync_wait(s[0]);
	close(s[0]);
	reap(pid);
	return ok;
}

static bool end_by_path(struct kq *q, int file, int fd, __u32 flags,
			enum state state, enum path path)
{
	int null, s[2];

	if (path >= PATH_EXIT)
		return end_with_process(q, fd, flags, state, path);
	if (!bring_to_state(q, fd, flags, state))
		return false;
	switch (path) {
	case PATH_DUP2:
		null = open("/dev/null", O_RDWR | O_CLOEXEC);
		dup2(null, fd);
		close(null);
		return true;
	case PATH_CLOSE_RANGE:
		return !sys_close_range(fd, fd, 0);
	case PATH_LAST_CLOSE:
		close(file);
		break;
	case PATH_IN_FLIGHT:
		if (sync_open(s) || send_fd(s[0], fd))
			return false;
		close(fd);
		close(s[0]);
		close(s[1]);
		return true;
	default:
		break;
	}
	return !close(fd);
}

TEST_F_TIMEOUT(mode, ends_in_every_way, 60)
{
	for (enum path path = 0; path < NR_PATHS; path++) {
		for (enum state state = 0; state < NR_STATES; state++) {
			int file = open_eventfd();
			int fd = dup_high(file);

			ASSERT_TRUE(end_by_path(&self->q, file, fd,
						variant->flags, state, path))
				TH_LOG("path %d, state %d", path, state);
			if (path != PATH_LAST_CLOSE)
				signal_eventfd(file);
			want_none(&self->q, BY_RING);
			EXPECT_EQ(0, kevent_ring_flags(&self->q.map))
				TH_LOG("path %d, state %d", path, state);
			want_none(&self->q, BY_SYSCALL);
			if (path != PATH_LAST_CLOSE) {
				/* Nothing is in the way of a new one. */
				ASSERT_EQ(fd, dup2(file, fd));
				EXPECT_EQ(1, kq_add_mode(&self->q, fd, EPOLLIN,
							 variant->flags, 2))
					TH_LOG("path %d, state %d", path,
					       state);
				close(file);
			}
			close(fd);
			want_none(&self->q, BY_RING);
		}
	}
	want_all_free(&self->q);
}

/*
 * Timers and user events
 */

/* Their numbers say nothing about descriptors. */
TEST_F(lifetime, of_timers_and_user_events_is_not_that_of_a_descriptor)
{
	pid_t pid;

	ASSERT_EQ(1, kq_add_timer(&self->q, self->fd, CLOCK_MONOTONIC,
				  10 * NSEC_PER_MSEC, 0, 1));
	ASSERT_EQ(1, kq_add_user(&self->q, self->fd, KEVENT_USER_COUNT, 0, 2));
	/* Nor is it that of who made them. */
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(kq_add_timer(&self->q, HIGH_FD, CLOCK_MONOTONIC,
				   10 * NSEC_PER_MSEC, 0, 3) != 1 ||
		      kq_add_user(&self->q, HIGH_FD, KEVENT_USER_COUNT, 0,
				  4) != 1);
	EXPECT_EQ(0, reap(pid));
	ASSERT_EQ(0, close(self->fd));
	ASSERT_EQ(1, kq_trigger(&self->q, self->fd, 5, 0));
	ASSERT_EQ(1, kq_trigger(&self->q, HIGH_FD, 6, 0));
	EXPECT_EQ(4, kq_getevents(&self->q, NULL, 4, 0, PATIENCE_MS));
	EXPECT_EQ(1U << 1 | 1U << 2 | 1U << 3 | 1U << 4,
		  collect_user_data(&self->q));
	for (__u16 source = KEVENT_SOURCE_TIMER; source <= KEVENT_SOURCE_USER;
	     source++) {
		EXPECT_EQ(1, kq_op(&self->q, source, KEVENT_OP_DEL, self->fd,
				   0));
		EXPECT_EQ(1, kq_op(&self->q, source, KEVENT_OP_DEL, HIGH_FD,
				   0));
	}
	want_all_free(&self->q);
}

#define FAST_NS 30000

/* Timers that fire all the time, and user events that are triggered */
static bool fill_with_active(const struct kq *q)
{
	for (int i = 0; i < 3; i++)
		if (kq_add_timer(q, i, CLOCK_MONOTONIC, 1, FAST_NS, 10 + i) !=
		    1 || kq_add_user(q, i, KEVENT_USER_COUNT, 0, 20 + i) != 1 ||
		    kq_trigger(q, i, 1, 0) != 1)
			return false;
	return true;
}

TEST_F(lifetime, of_timers_and_user_events_ends_with_the_queue)
{
	for (int i = 0; i < 40; i++) {
		struct kq more;
		pid_t pid;

		ASSERT_EQ(0, kq_open(&more, SLOTS));
		ASSERT_TRUE(fill_with_active(&more));
		switch (i % 4) {
		case 0:
			kq_close(&more);
			break;
		case 1:
			/* The mapping goes last, and with it the queue. */
			close(more.fd);
			more.fd = -1;
			sched_yield();
			kq_close(&more);
			break;
		default:
			/* A process is the last to have it. */
			pid = fork();
			ASSERT_LE(0, pid);
			if (!pid) {
				sleep_ms(1);
				if (i % 4 == 2)
					kill(getpid(), SIGKILL);
				_exit(0);
			}
			kq_close(&more);
			EXPECT_EQ(i % 4 == 2 ? 128 + SIGKILL : 0, reap(pid));
		}
	}
	/* Not that of others */
	ASSERT_TRUE(fill_with_active(&self->q));
	EXPECT_EQ(6, kq_getevents(&self->q, NULL, 6, 0, PATIENCE_MS));
}

TEST_F(lifetime, of_timers_and_user_events_is_that_of_the_queue_they_moved_to)
{
	for (int i = 0; i < 20; i++) {
		struct kq from, to;

		ASSERT_EQ(0, kq_open(&from, SLOTS));
		ASSERT_EQ(0, kq_open(&to, SLOTS));
		ASSERT_TRUE(fill_with_active(&from));
		for (int k = 0; k < 3; k++) {
			ASSERT_EQ(1, kq_move(&from, &to, KEVENT_SOURCE_TIMER, k,
					     0));
			ASSERT_EQ(1, kq_move(&from, &to, KEVENT_SOURCE_USER, k,
					     0));
		}
		if (i % 2) {
			kq_close(&to);
			EXPECT_EQ(-ENOENT, kq_op(&from, KEVENT_SOURCE_TIMER,
						 KEVENT_OP_DEL, 0, 0));
			want_none(&from, BY_RING);
			EXPECT_TRUE(fill_with_active(&from));
		}
		kq_close(&from);
		if (!(i % 2)) {
			EXPECT_EQ(6, kq_getevents(&to, NULL, 6, 0,
						  PATIENCE_MS));
			/* The timers go on. */
			collect_user_data(&to);
			EXPECT_EQ(3, kq_getevents(&to, NULL, 3, 0,
						  PATIENCE_MS));
			kq_close(&to);
		}
	}
}

TEST_F(lifetime, of_timers_ends_with_deletion_while_they_fire)
{
	static const __u32 modes[] = { 0, KEVENT_ONESHOT, KEVENT_DISPATCH };

	for (int i = 0; i < 300; i++) {
		struct ukevent c = kq_timer_change(KEVENT_OP_ADD, 1,
						   CLOCK_MONOTONIC, 1, FAST_NS,
						   modes[i % 3], i);
		int ret;

		ASSERT_EQ(1, kq_apply(&self->q, c));
		for (int k = 0; k < i % 7; k++)
			sched_yield();
		ret = kq_op(&self->q, KEVENT_SOURCE_TIMER, KEVENT_OP_DEL, 1, 0);
		EXPECT_EQ(1, ret);
		want_none(&self->q, BY_RING);
		for (int k = 0; k < i % 5; k++)
			sched_yield();
		want_none(&self->q, BY_SYSCALL);
	}
	want_all_free(&self->q);
}

/*
 * Two threads that do something at the same time, again and again
 */

struct race {
	int arrived;		/* how often one of them was here */
};

/* Until both have come here @times times */
static void meet(struct race *r, int times)
{
	__atomic_fetch_add(&r->arrived, 1, __ATOMIC_ACQ_REL);
	for (int spins = 0; __atomic_load_n(&r->arrived, __ATOMIC_ACQUIRE) <
			    2 * times; spins++)
		if (spins > 100)
			sched_yield();
}

/* A moment more or less */
static void dawdle(__u64 random)
{
	for (unsigned int n = random % 2048; n; n--)
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

#define RACE_ROUNDS 1000

FIXTURE(race) {
	struct kq q;
};

FIXTURE_VARIANT(race) {
	enum path path;
	__u32 flags;
};

FIXTURE_VARIANT_ADD(race, with_close) { PATH_CLOSE, KEVENT_EDGE };
FIXTURE_VARIANT_ADD(race, with_dup2) { PATH_DUP2, KEVENT_EDGE };
FIXTURE_VARIANT_ADD(race, with_close_range) { PATH_CLOSE_RANGE, KEVENT_EDGE };
FIXTURE_VARIANT_ADD(race, with_last_close) { PATH_LAST_CLOSE, KEVENT_EDGE };
FIXTURE_VARIANT_ADD(race, of_level_with_close) { PATH_CLOSE, KEVENT_LEVEL };
FIXTURE_VARIANT_ADD(race, of_one_shot_with_close) {
	PATH_CLOSE, KEVENT_EDGE | KEVENT_ONESHOT,
};

FIXTURE_SETUP(race)
{
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(race)
{
	kq_close(&self->q);
}

struct closer {
	struct race race;
	enum path path;
	__u64 random;
	int other;		/* another file */
	int wrong;
};

static void *close_again_and_again(void *arg)
{
	struct closer *c = arg;
	bool ok;

	for (int i = 0; i < RACE_ROUNDS; i++) {
		meet(&c->race, 2 * i + 1);
		dawdle(next_random(&c->random));
		if (c->path == PATH_DUP2)
			ok = dup2(c->other, HIGH_FD) == HIGH_FD;
		else if (c->path == PATH_CLOSE_RANGE)
			ok = !sys_close_range(HIGH_FD, HIGH_FD, 0);
		else
			ok = !close(HIGH_FD);
		c->wrong += !ok;
		meet(&c->race, 2 * i + 2);
	}
	return NULL;
}

/*
 * Whichever comes first: if the descriptor is gone, there is no registration of
 * it.  If it was replaced, it can have one of the other file.
 */
TEST_F_TIMEOUT(race, of_addition_leaves_nothing_behind, 60)
{
	struct closer c = {
		.path = variant->path,
		.random = random_seed(),
		.other = open_eventfd(),
	};
	bool last = variant->path == PATH_LAST_CLOSE;
	__u64 random = c.random + 1;
	int file = open_eventfd();
	pthread_t thread;

	ASSERT_EQ(0, pthread_create(&thread, NULL, close_again_and_again, &c));
	for (int i = 0; i < RACE_ROUNDS; i++) {
		struct ukevent ev;
		int ret;

		if (last)
			file = open_eventfd();
		ASSERT_EQ(HIGH_FD, dup2(file, HIGH_FD));
		if (i % 2)
			signal_eventfd(file);
		if (last)
			close(file);
		meet(&c.race, 2 * i + 1);
		dawdle(next_random(&random));
		ret = kq_add_mode(&self->q, HIGH_FD, EPOLLIN, variant->flags,
				  i);
		meet(&c.race, 2 * i + 2);
		ASSERT_TRUE(ret == 1 || ret == -EBADF)
			TH_LOG("round %d: returned %d", i, ret);
		if (!last)
			signal_eventfd(file);
		ASSERT_EQ(0, kq_collect(&self->q, BY_RING, &ev, 1))
			TH_LOG("round %d: event of %lld", i, ev.user_data);
		ASSERT_EQ(0, kq_collect(&self->q, BY_SYSCALL, &ev, 1))
			TH_LOG("round %d: event of %lld", i, ev.user_data);
		if (variant->path == PATH_DUP2)
			close(HIGH_FD);
		if (!last)
			drain_eventfd(file);
	}
	pthread_join(thread, NULL);
	EXPECT_EQ(0, c.wrong);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	want_all_free(&self->q);
}

struct adder {
	const struct kq *q;
	int file;
	int started;
};

static void *add_for_ever(void *arg)
{
	struct adder *a = arg;

	for (int i = 0; ; i++) {
		int fd = dup_high(a->file);

		kq_add_mode(a->q, fd, EPOLLIN,
			    i % 3 ? KEVENT_EDGE : KEVENT_LEVEL, i);
		__atomic_store_n(&a->started, 1, __ATOMIC_RELEASE);
		if (i % 2)
			close(fd);
		if (fd < 0 || fd >= HIGH_FD + 2 * SLOTS)
			sys_close_range(HIGH_FD, HIGH_FD + 2 * SLOTS, 0);
	}
	return NULL;
}

/* A thread of a process adds while another ends it, or executes something. */
TEST_F_TIMEOUT(lifetime, ends_with_the_process_that_is_adding, 60)
{
	static const enum how_to_end hows[] = { BY_EXIT, BY_KILL, BY_EXEC };
	__u64 random = random_seed();

	for (int i = 0; i < 45; i++) {
		enum how_to_end how = hows[i % ARRAY_SIZE(hows)];
		__u64 rnd = next_random(&random);
		int s[2];
		pid_t pid;

		ASSERT_EQ(0, sync_open(s));
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			struct adder a = { .q = &self->q, .file = self->copy };
			pthread_t thread;

			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(s[0]);
			if (pthread_create(&thread, NULL, add_for_ever, &a))
				_exit(1);
			while (!__atomic_load_n(&a.started, __ATOMIC_ACQUIRE))
				sched_yield();
			dawdle(rnd);
			if (how == BY_EXEC)
				exec_child(s[1]);
			if (how == BY_KILL)
				kill(getpid(), SIGKILL);
			_exit(0);
		}
		close(s[1]);
		/* What is executed waits until it is told to end. */
		if (how == BY_EXEC)
			EXPECT_TRUE(sync_wait(s[0]));
		if (how != BY_EXEC)
			EXPECT_EQ(how == BY_KILL ? 128 + SIGKILL : 0,
				  reap(pid));
		signal_eventfd(self->copy);
		want_none(&self->q, BY_RING);
		want_none(&self->q, BY_SYSCALL);
		drain_eventfd(self->copy);
		close(s[0]);
		if (how == BY_EXEC)
			EXPECT_EQ(0, reap(pid));
	}
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	want_all_free(&self->q);
}

/*
 * A wake-up that was meant for a registration that has ended, and finds another
 * in its place
 */

#define REUSE_ROUNDS 800

struct signaller {
	int file;
	int stop;
};

static void *signal_for_ever(void *arg)
{
	struct signaller *s = arg;

	while (!__atomic_load_n(&s->stop, __ATOMIC_ACQUIRE))
		signal_eventfd(s->file);
	return NULL;
}

/* Registers something active, and ends it. */
static void begin_and_end(struct __test_metadata *_metadata, struct kq *q,
			  int file, int round)
{
	int fd = dup_high(file);
	struct ukevent ev;

	switch (round % 5) {
	case 0:
		ASSERT_EQ(1, kq_add(q, fd, EPOLLIN, 1));
		ASSERT_EQ(1, kq_del(q, fd));
		break;
	case 1:
		ASSERT_EQ(1, kq_add(q, fd, EPOLLIN, 1));
		break;
	case 2:
		ASSERT_EQ(1, kq_add_mode(q, fd, EPOLLIN, KEVENT_LEVEL, 1));
		break;
	case 3:
		ASSERT_EQ(1, kq_add_mode(q, fd, EPOLLIN,
					 KEVENT_EDGE | KEVENT_ONESHOT, 1));
		ASSERT_EQ(1, kq_next(q, round & 1, &ev));
		/* Which makes sure that it is gone */
		ASSERT_EQ(-ENOENT, kq_del(q, fd));
		break;
	default:
		ASSERT_EQ(1, kq_add_timer(q, 7, CLOCK_MONOTONIC, 1, FAST_NS,
					  1));
		ASSERT_EQ(1, kq_op(q, KEVENT_SOURCE_TIMER, KEVENT_OP_DEL, 7,
				   0));
	}
	close(fd);
}

TEST_F_TIMEOUT(lifetime, of_the_next_begins_without_an_old_wake_up, 60)
{
	struct signaller s = { .file = self->copy };
	pthread_t thread;
	int quiet[2];

	ASSERT_EQ(0, pipe2(quiet, O_CLOEXEC));
	signal_eventfd(self->copy);
	ASSERT_EQ(0, pthread_create(&thread, NULL, signal_for_ever, &s));
	for (int i = 0; i < REUSE_ROUNDS; i++) {
		begin_and_end(_metadata, &self->q, self->copy, i);
		/* Nothing happens to these. */
		ASSERT_EQ(1, kq_add(&self->q, quiet[0], EPOLLIN, 2));
		ASSERT_EQ(1, kq_add_user(&self->q, 7, KEVENT_USER_COUNT, 0, 3));
		want_none(&self->q, BY_RING);
		sched_yield();
		want_none(&self->q, BY_SYSCALL);
		ASSERT_EQ(1, kq_del(&self->q, quiet[0]));
		ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_USER, KEVENT_OP_DEL,
				   7, 0));
	}
	__atomic_store_n(&s.stop, 1, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	want_all_free(&self->q);
}

/*
 * Threads that collect in both ways, while a registration that is always active
 * ends and begins anew.  Its user data says for which time; once it has ended,
 * nobody gets an event of that time any more.
 */

#define LIVES 200

enum activity {
	OF_FILE,
	OF_LEVEL,
	OF_TIMER,
	OF_USER,
};

struct lives {
	struct kq q;
	enum activity activity;
	int file;
	unsigned int ended;	/* the last that has */
	unsigned int seen;
	int wrong;
	int stop;
};

FIXTURE(ended) {
	struct lives l;
};

FIXTURE_VARIANT(ended) {
	enum activity activity;
};

FIXTURE_VARIANT_ADD(ended, file) { OF_FILE };
FIXTURE_VARIANT_ADD(ended, level) { OF_LEVEL };
FIXTURE_VARIANT_ADD(ended, timer) { OF_TIMER };
FIXTURE_VARIANT_ADD(ended, user_event) { OF_USER };

FIXTURE_SETUP(ended)
{
	self->l.activity = variant->activity;
	self->l.file = open_eventfd();
	ASSERT_LE(0, self->l.file);
	signal_eventfd(self->l.file);
	kq_setup(_metadata, &self->l.q, SLOTS);
}

FIXTURE_TEARDOWN(ended)
{
	kq_close(&self->l.q);
}

static void *activate(void *arg)
{
	struct lives *l = arg;

	while (!__atomic_load_n(&l->stop, __ATOMIC_ACQUIRE)) {
		switch (l->activity) {
		case OF_USER:
			kq_trigger(&l->q, 1, 1, 0);
			break;
		case OF_TIMER:
			return NULL;
		default:
			signal_eventfd(l->file);
		}
		sched_yield();
	}
	return NULL;
}

static void collect_lives(struct lives *l, enum collect_by by)
{
	struct kq q = l->q;
	bool wait = false;

	while (!__atomic_load_n(&l->stop, __ATOMIC_ACQUIRE)) {
		unsigned int ended = __atomic_load_n(&l->ended,
						     __ATOMIC_ACQUIRE);
		struct ukevent ev;
		int nr;

		if (by == BY_SYSCALL)
			nr = kq_getevents(&q, &ev, wait, 1, wait);
		else
			nr = kq_collect(&q, by, &ev, 1);
		wait = !wait;
		if (nr < 0 || (nr && ev.user_data <= ended))
			__atomic_fetch_add(&l->wrong, 1, __ATOMIC_RELAXED);
		else if (nr)
			__atomic_store_n(&l->seen, ev.user_data,
					 __ATOMIC_RELEASE);
		else
			sched_yield();
	}
}

static void *collect_lives_by_ring(void *arg)
{
	collect_lives(arg, BY_RING);
	return NULL;
}

static void *collect_lives_by_call(void *arg)
{
	collect_lives(arg, BY_SYSCALL);
	return NULL;
}

static struct ukevent life_change(const struct lives *l, __u16 op, __u64 life)
{
	bool named = op != KEVENT_OP_ADD && op != KEVENT_OP_MOD;

	switch (l->activity) {
	case OF_TIMER:
		if (named)
			return kq_change(KEVENT_SOURCE_TIMER, op, 1, 0);
		return kq_timer_change(op, 1, CLOCK_MONOTONIC, 1, FAST_NS, 0,
				       life);
	case OF_USER:
		if (named)
			return kq_change(KEVENT_SOURCE_USER, op, 1, 0);
		return kq_user_change(op, 1, KEVENT_USER_COUNT, 0, life);
	default:
		if (named)
			return kq_change(KEVENT_SOURCE_FD, op, HIGH_FD, 0);
		return kq_mode_change(op, HIGH_FD, EPOLLIN,
				      l->activity == OF_LEVEL ? KEVENT_LEVEL :
								KEVENT_EDGE,
				      life);
	}
}

static int change_life(const struct lives *l, __u16 op, __u64 life)
{
	return kq_apply(&l->q, life_change(l, op, life));
}

/* There can be slots that are still to be claimed. */
static int begin_life(const struct lives *l, __u64 life)
{
	int ret;

	if (l->activity <= OF_LEVEL && dup2(l->file, HIGH_FD) != HIGH_FD)
		return -errno;
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		ret = change_life(l, KEVENT_OP_ADD, life);
		if (ret != -ENOSPC)
			break;
		sleep_ms(1);
	}
	return ret;
}

static bool is_seen(struct lives *l, unsigned int life)
{
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		if (__atomic_load_n(&l->seen, __ATOMIC_ACQUIRE) == life)
			return true;
		sleep_ms(1);
	}
	return false;
}

TEST_F_TIMEOUT(ended, one_has_no_event_for_anybody, 60)
{
	static void *(* const fns[])(void *) = {
		activate, collect_lives_by_ring, collect_lives_by_ring,
		collect_lives_by_call, collect_lives_by_call,
	};
	pthread_t threads[ARRAY_SIZE(fns)];
	__u64 random = random_seed();
	struct lives *l = &self->l;
	bool begun = false;

	for (size_t i = 0; i < ARRAY_SIZE(fns); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, fns[i], l));
	for (unsigned int life = 1; life <= LIVES; life++) {
		__u64 rnd = next_random(&random);

		if (!begun)
			ASSERT_EQ(1, begin_life(l, life));
		begun = false;
		if (!(life % 16))
			ASSERT_TRUE(is_seen(l, life))
				TH_LOG("life %u has no events", life);
		for (int i = rnd % 4; i; i--)
			sched_yield();
		switch ((rnd >> 8) % (l->activity <= OF_LEVEL ? 4 : 3)) {
		case 0:
			ASSERT_EQ(1, change_life(l, KEVENT_OP_DEL, 0));
			break;
		case 1:
			/* It goes on under another name. */
			ASSERT_EQ(1, change_life(l, KEVENT_OP_MOD, life + 1));
			begun = true;
			break;
		case 2:
			ASSERT_EQ(1, change_life(l, KEVENT_OP_DISABLE, 0));
			__atomic_store_n(&l->ended, life, __ATOMIC_RELEASE);
			sched_yield();
			ASSERT_EQ(1, change_life(l, KEVENT_OP_DEL, 0));
			break;
		default:
			ASSERT_EQ(0, close(HIGH_FD));
		}
		__atomic_store_n(&l->ended, life, __ATOMIC_RELEASE);
	}
	__atomic_store_n(&l->stop, 1, __ATOMIC_RELEASE);
	for (size_t i = 0; i < ARRAY_SIZE(fns); i++)
		pthread_join(threads[i], NULL);
	EXPECT_EQ(0, l->wrong);
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
#define STORM_CHANGERS 3
#define STORM_CHANGES 3000

struct storm {
	struct kq q;
	int left;		/* who change something */
	int bad_returns;
	unsigned int seed;
};

static void *storm_change(void *arg)
{
	struct storm *st = arg;
	unsigned int rnd = __atomic_add_fetch(&st->seed, 1, __ATOMIC_RELAXED);

	for (int i = 0; i < STORM_CHANGES; i++) {
		int fd, ret = 1;

		rnd = rnd * 1103515245 + 12345;
		fd = HIGH_FD + (rnd >> 16) % STORM_FDS;
		switch ((rnd >> 20) % 10) {
		case 0:
			ret = kq_add(&st->q, fd, EPOLLIN | EPOLLOUT, fd);
			break;
		case 8:
			ret = kq_add_mode(&st->q, fd, EPOLLIN, KEVENT_LEVEL,
					  fd);
			break;
		case 9:
			ret = kq_set_mode(&st->q, fd, EPOLLIN | EPOLLOUT,
					  KEVENT_EDGE | KEVENT_ONESHOT, fd);
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
	__atomic_fetch_sub(&st->left, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void *storm_collect(void *arg)
{
	struct storm *st = arg;
	struct kq q = st->q;
	struct ukevent evs[SLOTS];

	for (unsigned int i = 0; __atomic_load_n(&st->left, __ATOMIC_ACQUIRE);
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
	struct storm st = {
		.left = STORM_CHANGERS,
		.seed = random_seed(),
	};

	ASSERT_EQ(0, kq_open(&st.q, SLOTS));
	for (size_t i = 0; i < ARRAY_SIZE(fns); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, fns[i], &st));
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
