// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: what there can be of it, and what can be seen of it.  The number of
 * registrations of a user, the memory of a memory cgroup, the size of a ring;
 * /proc/PID/fdinfo and the tracepoints.
 */
#include "kevent_util.h"

#include <limits.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#define SLOTS	32

/*
 * Files
 */

/* All that there is, to be freed; NULL if it cannot be read */
static char *read_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t size = 0, len = 0;
	char *text = NULL;
	ssize_t n = -1;

	if (fd < 0)
		return NULL;
	do {
		if (size - len < 4096) {
			char *more = realloc(text, size += 16384);

			if (!more)
				break;
			text = more;
		}
		n = read(fd, text + len, size - len - 1);
		if (n > 0)
			len += n;
	} while (n > 0);
	close(fd);
	if (n < 0) {
		free(text);
		return NULL;
	}
	text[len] = 0;
	return text;
}

/* For mounts that go away with the process */
static bool own_mounts(void)
{
	return !unshare(CLONE_NEWNS) &&
	       !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

/*
 * The number of registrations of a user
 */

#define LIMIT_FILE "/proc/sys/fs/kevent/max_user_registrations"
#define LIMIT	5
/* Users who have no registrations but those of the test */
#define UID	54322
#define OTHER_UID 54323

enum sort {
	EDGE_FD,
	LEVEL_FD,
	TIMER,
	USER,
	NR_KINDS,
};

/* What is registered; of files, descriptors of an eventfd for each. */
#define NR	16

FIXTURE(quota) {
	struct kq q;		/* of UID, used by root */
	char limit[32];		/* what it was */
	int fds[NR];
};

static bool set_limit(unsigned int limit)
{
	char text[16];

	snprintf(text, sizeof(text), "%u\n", limit);
	return write_file(LIMIT_FILE, text);
}

/* A queue for whose registrations @uid pays, though root uses it */
static int open_as(uid_t uid, struct kq *q)
{
	int err;

	if (setresuid(uid, uid, 0))
		return -errno;
	err = kq_open_flags(q, SLOTS, KEVENT_INIT_OVERCOMMIT, 0);
	if (setresuid(0, 0, 0))
		abort();
	return err;
}

FIXTURE_SETUP(quota)
{
	char *limit;

	self->q.fd = -1;
	if (access("/proc/sys/fs", F_OK))
		SKIP(return, "no sysctls to be seen");
	if (!kq_setup(_metadata, &self->q, 1))
		return;
	kq_close(&self->q);
	if (setresuid(UID, UID, 0) || setresuid(0, 0, 0))
		SKIP(return, "cannot become another user");
	ASSERT_EQ(0, open_as(UID, &self->q));
	limit = read_file(LIMIT_FILE);
	ASSERT_NE(NULL, limit);
	snprintf(self->limit, sizeof(self->limit), "%s", limit);
	free(limit);
	for (int i = 0; i < NR; i++) {
		self->fds[i] = open_eventfd();
		ASSERT_LE(0, self->fds[i]);
	}
	if (!set_limit(LIMIT))
		SKIP(return, "cannot set the limit of registrations");
}

/* In the parent, so that the limit is right even after a crash */
FIXTURE_TEARDOWN_PARENT(quota)
{
	write_file(LIMIT_FILE, self->limit);
}

static struct ukevent change_of(__u16 op, enum sort kind, const int *fds, int i)
{
	bool named = op != KEVENT_OP_ADD && op != KEVENT_OP_MOD &&
		     op != KEVENT_OP_SET;

	switch (kind) {
	case EDGE_FD:
	case LEVEL_FD:
		if (named)
			return kq_change(KEVENT_SOURCE_FD, op, fds[i], 0);
		return kq_mode_change(op, fds[i], EPOLLIN,
				      kind == EDGE_FD ? KEVENT_EDGE :
							KEVENT_LEVEL, i);
	case TIMER:
		if (named)
			return kq_change(KEVENT_SOURCE_TIMER, op, i, 0);
		return kq_timer_change(op, i, CLOCK_MONOTONIC, HOUR_NS, 0, 0,
				       i);
	default:
		if (named)
			return kq_change(KEVENT_SOURCE_USER, op, i, 0);
		return kq_user_change(op, i, KEVENT_USER_COUNT, 0, i);
	}
}

static int do_op(const struct kq *q, __u16 op, enum sort kind, const int *fds,
		 int i)
{
	return kq_apply(q, change_of(op, kind, fds, i));
}

#define add(q, kind, i)	do_op(q, KEVENT_OP_ADD, kind, self->fds, i)
#define del(q, kind, i)	do_op(q, KEVENT_OP_DEL, kind, self->fds, i)

/* The user of @q can have @room registrations more; uses the last of them. */
static void __want_room(struct __test_metadata *_metadata, int line,
			const struct kq *q, enum sort kind, const int *fds,
			int room)
{
	int first = NR - 1 - room;

	for (int i = first; i < NR - 1; i++) {
		EXPECT_EQ(1, do_op(q, KEVENT_OP_ADD, kind, fds, i))
			TH_LOG("line %d: kind %d, %d of %d", line, kind,
			       i - first, room);
	}
	EXPECT_EQ(-EDQUOT, do_op(q, KEVENT_OP_ADD, kind, fds, NR - 1))
		TH_LOG("line %d: kind %d, more than %d", line, kind, room);
	for (int i = first; i < NR - 1; i++)
		EXPECT_EQ(1, do_op(q, KEVENT_OP_DEL, kind, fds, i));
}

#define want_room(q, kind, room)					\
	__want_room(_metadata, __LINE__, q, kind, self->fds, room)

#define add_some(q, kind, nr) do {					\
	for (int n = 0; n < (nr); n++)					\
		ASSERT_EQ(1, add(q, kind, n));				\
} while (0)
#define del_some(q, kind, nr) do {					\
	for (int n = 0; n < (nr); n++)					\
		ASSERT_EQ(1, del(q, kind, n));				\
} while (0)

TEST_F(quota, refuses_registrations_beyond_the_limit)
{
	const struct kq *q = &self->q;

	for (enum sort kind = 0; kind < NR_KINDS; kind++) {
		add_some(q, kind, LIMIT);
		EXPECT_EQ(-EDQUOT, add(q, kind, LIMIT));
		EXPECT_EQ(-EDQUOT, do_op(q, KEVENT_OP_SET, kind, self->fds,
					 LIMIT));
		/* What is there can be changed, and deleted. */
		EXPECT_EQ(1, do_op(q, KEVENT_OP_MOD, kind, self->fds, 0));
		EXPECT_EQ(1, do_op(q, KEVENT_OP_SET, kind, self->fds, 0));
		EXPECT_EQ(1, do_op(q, KEVENT_OP_DISABLE, kind, self->fds, 0));
		EXPECT_EQ(1, do_op(q, KEVENT_OP_ENABLE, kind, self->fds, 0));
		del_some(q, kind, LIMIT);
	}
	/* It does not matter of what they are. */
	for (enum sort kind = 0; kind < NR_KINDS; kind++)
		ASSERT_EQ(1, add(q, kind, kind));
	for (enum sort kind = 0; kind < NR_KINDS; kind++)
		want_room(q, kind, LIMIT - NR_KINDS);
}

TEST_F(quota, comes_back_with_deletion)
{
	const struct kq *q = &self->q;

	for (enum sort kind = 0; kind < NR_KINDS; kind++) {
		for (int i = 0; i < 3 * LIMIT; i++) {
			add_some(q, kind, LIMIT - 1);
			del_some(q, kind, LIMIT - 1);
		}
		want_room(q, kind, LIMIT);
	}
}

TEST_F(quota, is_not_used_by_additions_that_fail)
{
	const struct kq *q = &self->q;

	for (enum sort kind = 0; kind < NR_KINDS; kind++) {
		struct ukevent bad = change_of(KEVENT_OP_ADD, kind, self->fds,
					       5);

		bad.flags = 0;
		add_some(q, kind, 2);
		for (int i = 0; i < 2 * LIMIT; i++) {
			EXPECT_EQ(-EEXIST, add(q, kind, 0));
			EXPECT_EQ(-EINVAL, kq_apply(q, bad));
			EXPECT_EQ(-ELOOP, kq_add(q, q->fd, EPOLLIN, 0));
			EXPECT_EQ(-EBADF, kq_add(q, 9999, EPOLLIN, 0));
		}
		want_room(q, kind, LIMIT - 2);
		del_some(q, kind, 2);
	}
}

TEST_F(quota, is_not_used_by_additions_that_find_no_slot)
{
	struct kq small;

	ASSERT_EQ(0, setresuid(UID, UID, 0));
	ASSERT_EQ(0, kq_open(&small, 1));
	ASSERT_EQ(0, setresuid(0, 0, 0));
	ASSERT_EQ(1, kq_add_user(&small, 0, KEVENT_USER_COUNT, 0, 0));
	for (int i = 0; i < 2 * LIMIT; i++)
		EXPECT_EQ(-ENOSPC, kq_add_user(&small, 1, KEVENT_USER_COUNT, 0,
					       0));
	want_room(&self->q, USER, LIMIT - 1);
	kq_close(&small);
}

TEST_F(quota, comes_back_with_the_descriptor)
{
	const struct kq *q = &self->q;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int copies[3];

	for (enum sort kind = EDGE_FD; kind <= LEVEL_FD; kind++) {
		for (int round = 0; round < 2; round++) {
			for (int i = 0; i < 3; i++) {
				copies[i] = dup(self->fds[0]);
				ASSERT_EQ(1, do_op(q, KEVENT_OP_ADD, kind,
						   copies, i));
			}
			want_room(q, kind, LIMIT - 3);
			/* With and without an event that was not claimed */
			if (round)
				signal_eventfd(self->fds[0]);
			close(copies[0]);
			want_room(q, kind, LIMIT - 2);
			ASSERT_EQ(copies[1], dup2(null, copies[1]));
			want_room(q, kind, LIMIT - 1);
			ASSERT_EQ(0, syscall(__NR_close_range, copies[2],
					     copies[2], 0));
			want_room(q, kind, LIMIT);
			drain_eventfd(self->fds[0]);
			close(copies[1]);
		}
	}
}

TEST_F(quota, comes_back_with_the_queue)
{
	for (enum sort kind = 0; kind < NR_KINDS; kind++) {
		struct kq more;

		ASSERT_EQ(0, open_as(UID, &more));
		add_some(&more, kind, 3);
		add_some(&self->q, kind, 2);
		EXPECT_EQ(-EDQUOT, add(&self->q, kind, 3));
		EXPECT_EQ(-EDQUOT, add(&more, kind, 3));
		kq_close(&more);
		want_room(&self->q, kind, 3);
		del_some(&self->q, kind, 2);
	}
}

/* Those of its descriptors do; others belong to the queue. */
TEST_F(quota, comes_back_with_the_process)
{
	const struct kq *q = &self->q;

	for (enum sort kind = 0; kind < NR_KINDS; kind++) {
		bool stays = kind == TIMER || kind == USER;
		pid_t pid = fork();

		ASSERT_LE(0, pid);
		if (!pid) {
			for (int i = 0; i < 3; i++)
				if (add(q, kind, i) != 1)
					_exit(1);
			_exit(0);
		}
		ASSERT_EQ(0, reap(pid));
		want_room(q, kind, stays ? LIMIT - 3 : LIMIT);
		if (stays)
			del_some(q, kind, 3);
	}
}

TEST_F(quota, comes_back_with_the_claim_of_a_one_shot)
{
	struct kq *q = &self->q;
	struct ukevent ev;

	for (enum sort kind = 0; kind < NR_KINDS; kind++) {
		for (int by = BY_RING; by <= BY_SYSCALL; by++) {
			struct ukevent c = change_of(KEVENT_OP_ADD, kind,
						     self->fds, 0);

			if (kind == LEVEL_FD && by == BY_RING)
				continue;
			c.flags |= KEVENT_ONESHOT;
			if (kind == TIMER)
				c.data = 1;
			ASSERT_EQ(1, kq_apply(q, c));
			if (kind == USER)
				ASSERT_EQ(1, kq_trigger(q, 0, 1, 0));
			if (kind <= LEVEL_FD)
				signal_eventfd(self->fds[0]);
			want_room(q, kind, LIMIT - 1);
			ASSERT_EQ(1, kq_next(q, by, &ev))
				TH_LOG("kind %d", kind);
			want_room(q, kind, LIMIT);
			drain_eventfd(self->fds[0]);
		}
	}
}

/* All of it a process of that user */
static int use_up_the_quota(int sock)
{
	struct kq q;

	if (setresuid(OTHER_UID, OTHER_UID, OTHER_UID) || kq_open(&q, SLOTS))
		return 1;
	for (int i = 0; i < LIMIT; i++)
		if (kq_add_user(&q, i, KEVENT_USER_COUNT, 0, i) != 1)
			return 2;
	if (kq_add_user(&q, LIMIT, KEVENT_USER_COUNT, 0, 0) != -EDQUOT)
		return 3;
	sync_post(sock);
	sync_wait(sock);
	return 0;
}

TEST_F(quota, of_another_user_is_another)
{
	int s[2];
	pid_t pid;

	ASSERT_EQ(0, sync_open(s));
	add_some(&self->q, USER, LIMIT);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(s[0]);
		_exit(use_up_the_quota(s[1]));
	}
	close(s[1]);
	EXPECT_TRUE(sync_wait(s[0]));
	del_some(&self->q, USER, LIMIT);
	want_room(&self->q, USER, LIMIT);
	close(s[0]);
	EXPECT_EQ(0, reap(pid));
}

TEST_F(quota, is_that_of_who_made_the_queue)
{
	struct kq other;
	pid_t pid;

	ASSERT_EQ(0, open_as(OTHER_UID, &other));
	add_some(&self->q, USER, LIMIT);
	EXPECT_EQ(-EDQUOT, add(&self->q, USER, LIMIT));
	/* The same process has room here, */
	want_room(&other, USER, LIMIT);
	/* and who has room elsewhere has none here. */
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (setresuid(OTHER_UID, OTHER_UID, OTHER_UID))
			_exit(1);
		_exit(add(&self->q, USER, LIMIT) != -EDQUOT);
	}
	EXPECT_EQ(0, reap(pid));
	kq_close(&other);
}

TEST_F(quota, is_checked_when_a_registration_is_moved)
{
	struct kq other;

	ASSERT_EQ(0, open_as(OTHER_UID, &other));
	for (enum sort kind = 0; kind < NR_KINDS; kind++) {
		struct ukevent move = change_of(KEVENT_OP_MOVE, kind,
						self->fds, NR - 1);

		move.data = other.fd;
		ASSERT_EQ(1, add(&self->q, kind, NR - 1));
		add_some(&other, kind, LIMIT);
		EXPECT_EQ(-EDQUOT, kq_apply(&self->q, move))
			TH_LOG("kind %d", kind);
		/* It is where it was. */
		EXPECT_EQ(-EEXIST, add(&self->q, kind, NR - 1));

		ASSERT_EQ(1, del(&other, kind, 0));
		EXPECT_EQ(1, kq_apply(&self->q, move))
			TH_LOG("kind %d", kind);
		EXPECT_EQ(-EDQUOT, add(&other, kind, 0));
		EXPECT_EQ(1, del(&other, kind, NR - 1));
		want_room(&self->q, kind, LIMIT);
		want_room(&other, kind, 1);
		for (int i = 1; i < LIMIT; i++)
			ASSERT_EQ(1, del(&other, kind, i));
	}
	kq_close(&other);
}

/* Nor is there more for who has both queues: it is counted in the new one first. */
TEST_F(quota, has_to_have_one_that_is_free_for_a_move)
{
	struct kq other;

	ASSERT_EQ(0, open_as(UID, &other));
	for (enum sort kind = 0; kind < NR_KINDS; kind++) {
		struct ukevent move = change_of(KEVENT_OP_MOVE, kind,
						self->fds, 0);

		move.data = other.fd;
		add_some(&self->q, kind, LIMIT);
		for (int i = 0; i < 3; i++) {
			EXPECT_EQ(-EDQUOT, kq_apply(&self->q, move))
				TH_LOG("kind %d", kind);
		}
		/* It is where it was. */
		EXPECT_EQ(1, do_op(&self->q, KEVENT_OP_MOD, kind, self->fds, 0));
		EXPECT_EQ(-ENOENT, del(&other, kind, 0));

		ASSERT_EQ(1, del(&self->q, kind, LIMIT - 1));
		EXPECT_EQ(1, kq_apply(&self->q, move))
			TH_LOG("kind %d", kind);
		/* The one that was free is so again. */
		want_room(&self->q, kind, 1);
		want_room(&other, kind, 1);
		EXPECT_EQ(1, del(&other, kind, 0));
		for (int i = 1; i < LIMIT - 1; i++)
			ASSERT_EQ(1, del(&self->q, kind, i));
		want_room(&other, kind, LIMIT);
	}
	kq_close(&other);
}

TEST_F(quota, can_be_less_than_there_is)
{
	struct kq *q = &self->q;

	add_some(q, EDGE_FD, LIMIT);
	ASSERT_TRUE(set_limit(2));
	for (int i = LIMIT; i > 2; i--) {
		EXPECT_EQ(-EDQUOT, add(q, EDGE_FD, LIMIT));
		/* What there is goes on. */
		signal_eventfd(self->fds[i - 1]);
		want_event(q, BY_RING, self->fds[i - 1], EPOLLIN, EPOLLIN,
			   i - 1);
		ASSERT_EQ(1, del(q, EDGE_FD, i - 1));
	}
	EXPECT_EQ(-EDQUOT, add(q, EDGE_FD, LIMIT));
	ASSERT_EQ(1, del(q, EDGE_FD, 1));
	want_room(q, EDGE_FD, 1);

	ASSERT_TRUE(set_limit(0));
	ASSERT_EQ(1, del(q, EDGE_FD, 0));
	EXPECT_EQ(-EDQUOT, add(q, EDGE_FD, 0));
}

static bool limit_is(const char *wanted)
{
	char *limit = read_file(LIMIT_FILE);
	bool ok = limit && !strcmp(limit, wanted);

	free(limit);
	return ok;
}

TEST_F(quota, is_set_by_root_to_a_number)
{
	pid_t pid;

	EXPECT_LT(0, atoll(self->limit));
	EXPECT_TRUE(limit_is("5\n"));
	write_file(LIMIT_FILE, "-1\n");
	EXPECT_TRUE(limit_is("5\n"));
	write_file(LIMIT_FILE, "many\n");
	EXPECT_TRUE(limit_is("5\n"));
	EXPECT_TRUE(write_file(LIMIT_FILE, "2147483647\n"));
	EXPECT_TRUE(limit_is("2147483647\n"));

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (setresuid(UID, UID, UID))
			_exit(1);
		if (write_file(LIMIT_FILE, "7\n"))
			_exit(2);
		_exit(!limit_is("2147483647\n"));
	}
	EXPECT_EQ(0, reap(pid));
}

/*
 * Threads that add and delete at the limit
 */

#define QUOTA_THREADS	4
#define QUOTA_OPS	500

struct quota_thread {
	const struct kq *q;
	pthread_t thread;
	__u64 random;
	int first;		/* of four registrations */
	int *held;		/* by all; never more than there really are */
	int wrong;
};

static void *quota_fn(void *arg)
{
	struct quota_thread *t = arg;
	unsigned int mine = 0;

	for (int op = 0; op < QUOTA_OPS; op++) {
		int i = next_random(&t->random) % 4;

		if (mine & 1U << i) {
			__atomic_fetch_sub(t->held, 1, __ATOMIC_SEQ_CST);
			if (do_op(t->q, KEVENT_OP_DEL, USER, NULL,
				  t->first + i) != 1)
				t->wrong++;
			mine &= ~(1U << i);
			continue;
		}
		switch (do_op(t->q, KEVENT_OP_ADD, USER, NULL, t->first + i)) {
		case 1:
			mine |= 1U << i;
			if (__atomic_add_fetch(t->held, 1, __ATOMIC_SEQ_CST) >
			    LIMIT)
				t->wrong++;
			break;
		case -EDQUOT:
			break;
		default:
			t->wrong++;
		}
	}
	for (int i = 0; i < 4; i++) {
		if (!(mine & 1U << i))
			continue;
		__atomic_fetch_sub(t->held, 1, __ATOMIC_SEQ_CST);
		do_op(t->q, KEVENT_OP_DEL, USER, NULL, t->first + i);
	}
	return NULL;
}

TEST_F(quota, is_kept_under_fire)
{
	struct quota_thread t[QUOTA_THREADS] = { };
	__u64 random = random_seed();
	int held = 0;

	for (int i = 0; i < QUOTA_THREADS; i++) {
		t[i].q = &self->q;
		t[i].random = random + i;
		t[i].first = 4 * i;
		t[i].held = &held;
		ASSERT_EQ(0, pthread_create(&t[i].thread, NULL, quota_fn,
					    &t[i]));
	}
	for (int i = 0; i < QUOTA_THREADS; i++) {
		pthread_join(t[i].thread, NULL);
		EXPECT_EQ(0, t[i].wrong);
	}
	EXPECT_EQ(0, held);
	want_room(&self->q, USER, LIMIT);
}

/*
 * The size of a ring
 */

FIXTURE(ring) {
	struct kq q;
};

FIXTURE_SETUP(ring)
{
	kq_setup(_metadata, &self->q, KEVENT_MAX_SLOTS);
}

FIXTURE_TEARDOWN(ring)
{
	kq_close(&self->q);
}

TEST_F(ring, has_at_most_so_many_slots)
{
	struct kq q;

	EXPECT_EQ(KEVENT_MAX_SLOTS, self->q.map.nr_slots);
	EXPECT_EQ(-EINVAL, kq_grow(&self->q, 2 * KEVENT_MAX_SLOTS));

	EXPECT_EQ(-EINVAL, kq_open(&q, KEVENT_MAX_SLOTS + 1));
	EXPECT_EQ(-EINVAL, kq_open(&q, ~0U));
	ASSERT_EQ(0, kq_open(&q, 8));
	EXPECT_EQ(-EINVAL, kq_grow(&q, KEVENT_MAX_SLOTS + 1));
	EXPECT_EQ(-EINVAL, kq_grow(&q, 1ULL << 32 | 16));
	EXPECT_EQ(-EINVAL, kq_grow(&q, ~0ULL));
	EXPECT_EQ(8, q.map.ring->slots);
	EXPECT_EQ(1, kq_grow(&q, KEVENT_MAX_SLOTS));
	EXPECT_EQ(KEVENT_MAX_SLOTS, q.map.ring->slots);
	kq_close(&q);
}

/*
 * Memory cgroups.  That the limit works is not tested: that would leave a report
 * of the OOM killer in the log.
 */

#define CGROUPS	"/sys/fs/cgroup"

FIXTURE(memory) {
	struct kq q;
	char group[64];
	char current[96];	/* its file that says how much it has */
	long long *seen;	/* what a process in the group has seen */
};

FIXTURE_SETUP(memory)
{
	char *controllers;
	bool has_memory;

	self->q.fd = -1;
	/* Mounted over what there is, unless that is the same. */
	if (!own_mounts() || (mount("none", CGROUPS, "cgroup2", 0, NULL) &&
			      errno != EBUSY))
		SKIP(return, "cannot mount cgroup2");
	controllers = read_file(CGROUPS "/cgroup.controllers");
	has_memory = controllers && strstr(controllers, "memory");
	free(controllers);
	if (!has_memory)
		SKIP(return, "no memory controller in cgroup2");
	if (!write_file(CGROUPS "/cgroup.subtree_control", "+memory"))
		SKIP(return, "cannot use the memory controller");
	snprintf(self->group, sizeof(self->group), CGROUPS "/kevent-%d",
		 getpid());
	if (mkdir(self->group, 0755)) {
		self->group[0] = 0;
		SKIP(return, "cannot make a cgroup");
	}
	snprintf(self->current, sizeof(self->current), "%s/memory.current",
		 self->group);
	self->seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->seen);
	if (!kq_setup(_metadata, &self->q, 1))
		rmdir(self->group);
}

FIXTURE_TEARDOWN(memory)
{
	kq_close(&self->q);
	if (self->group[0])
		rmdir(self->group);
}

static long long memory_of(const char *file)
{
	char *text = read_file(file);
	long long bytes = text ? atoll(text) : -1;

	free(text);
	return bytes;
}

/* Frees can take their time. */
static long long memory_when_below(const char *file, long long bytes)
{
	long long now = memory_of(file);

	for (int ms = 0; ms < PATIENCE_MS && now >= bytes; ms += 10) {
		sleep_ms(10);
		now = memory_of(file);
	}
	return now;
}

static bool enter_group(const char *group)
{
	char path[96];

	snprintf(path, sizeof(path), "%s/cgroup.procs", group);
	return write_file(path, "0");
}

enum consumption {
	OF_RING,
	OF_GROWTH,
	OF_USER_EVENTS,
	OF_TIMERS,
	OF_FILES,
};

#define MANY 6000

/* Says what there was in the group before, meanwhile, and afterwards. */
static int consume(enum consumption what, const char *file, long long *seen,
		   long long least)
{
	int efd = open_eventfd();
	cpu_set_t cpu;
	struct kq q;

	/* What is charged in advance is so on each of them. */
	CPU_ZERO(&cpu);
	CPU_SET(sched_getcpu(), &cpu);
	sched_setaffinity(0, sizeof(cpu), &cpu);

	/* Whatever is there to stay */
	if (kq_open_flags(&q, 1, KEVENT_INIT_OVERCOMMIT, 0))
		return 2;
	kq_close(&q);

	if (what != OF_RING &&
	    kq_open_flags(&q, 1, KEVENT_INIT_OVERCOMMIT, 0))
		return 2;
	seen[0] = memory_of(file);
	switch (what) {
	case OF_RING:
		if (kq_open(&q, KEVENT_MAX_SLOTS))
			return 3;
		break;
	case OF_GROWTH:
		if (kq_grow(&q, KEVENT_MAX_SLOTS) != 1)
			return 3;
		break;
	case OF_USER_EVENTS:
		for (int i = 0; i < MANY; i++)
			if (kq_add_user(&q, i, KEVENT_USER_COUNT, 0, i) != 1)
				return 3;
		break;
	case OF_TIMERS:
		for (int i = 0; i < MANY; i++)
			if (kq_add_timer(&q, i, CLOCK_MONOTONIC, HOUR_NS, 0,
					 i) != 1)
				return 3;
		break;
	case OF_FILES:
		for (int i = 0; i < MANY; i++) {
			struct ukevent c = kq_mode_change(KEVENT_OP_ADD, efd,
							  EPOLLIN,
							  KEVENT_LEVEL, i);

			c.tag = i;
			if (kq_apply(&q, c) != 1)
				return 3;
		}
		break;
	}
	seen[1] = memory_of(file);
	kq_close(&q);
	seen[2] = memory_when_below(file, seen[1] - least / 2);
	return 0;
}

static void __want_charged(struct __test_metadata *_metadata,
			   const char *group, const char *current,
			   long long *seen, enum consumption what,
			   long long least)
{
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		if (!enter_group(group))
			_exit(1);
		_exit(consume(what, current, seen, least));
	}
	ASSERT_EQ(0, reap(pid));
	EXPECT_LE(0, seen[0]);
	EXPECT_LE(seen[0] + least, seen[1])
		TH_LOG("consumption %d", what);
	EXPECT_LT(seen[2], seen[1] - least / 2)
		TH_LOG("consumption %d, of %lld bytes", what, least);
}

#define want_charged(what, least)					\
	__want_charged(_metadata, self->group, self->current,		\
		       self->seen, what, least)

/* A part of it may have been charged in advance. */
#define RING_BYTES (KEVENT_MAX_SLOTS * sizeof(struct kevent_slot) / 4 * 3)

TEST_F(memory, of_a_ring_is_charged)
{
	want_charged(OF_RING, RING_BYTES);
}

TEST_F(memory, of_a_ring_that_grows_is_charged)
{
	want_charged(OF_GROWTH, RING_BYTES);
}

/* They take more than that, by far. */
TEST_F_TIMEOUT(memory, of_registrations_is_charged, 60)
{
	want_charged(OF_USER_EVENTS, 64 * MANY);
	want_charged(OF_TIMERS, 128 * MANY);
	want_charged(OF_FILES, 128 * MANY);
}

/*
 * /proc/PID/fdinfo
 */

FIXTURE(fdinfo) {
	struct kq q;		/* two events fill it, more can be registered */
	int efd;
};

FIXTURE_SETUP(fdinfo)
{
	if (access("/proc/self/fdinfo", F_OK))
		SKIP(return, "no fdinfo to be seen");
	self->efd = open_eventfd();
	ASSERT_LE(0, self->efd);
	kq_setup_flags(_metadata, &self->q, 2, KEVENT_INIT_OVERCOMMIT);
}

FIXTURE_TEARDOWN(fdinfo)
{
	kq_close(&self->q);
}

static char *fdinfo_of(pid_t pid, int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", pid, fd);
	return read_file(path);
}

/* What the line says that begins with @name; negative if there is none */
static long long info_field(const char *info, const char *name, int base)
{
	size_t len = strlen(name);
	const char *line = info;

	while (line) {
		line += *line == '\n';
		if (!strncmp(line, name, len) && line[len] == ':' &&
		    line[len + 1] == '\t')
			return strtoll(line + len + 2, NULL, base);
		line = strchr(line, '\n');
	}
	return -1;
}

struct info_line {
	unsigned int source;
	unsigned long long ident;
	unsigned int tag;
	unsigned int events;
	unsigned int flags;
	unsigned long long user_data;
	char state[16];
};

/*
 * The next line about a registration from *@at on, which goes on behind it.
 * False if there is none, or one that cannot be understood.
 */
static bool next_info_line(const char **at, struct info_line *l)
{
	const char *line = *at;
	int end = 0;

	while (line && strncmp(line, "source:", 7)) {
		line = strchr(line, '\n');
		line += !!line;
	}
	if (!line)
		return false;
	if (sscanf(line,
		   "source:%u ident:%llu tag:%u events:%x flags:%x user_data:%llx state:%15s%n",
		   &l->source, &l->ident, &l->tag, &l->events, &l->flags,
		   &l->user_data, l->state, &end) != 7 || line[end] != '\n')
		return false;
	*at = line + end + 1;
	return true;
}

/* Are all lines about registrations as they should be?  Gives their number. */
static int info_lines(const char *info)
{
	struct info_line l;
	int lines = 0, good = 0;

	for (const char *at = info; (at = strstr(at, "source:")); at++)
		lines++;
	for (const char *at = info; next_info_line(&at, &l); )
		good++;
	return good == lines ? good : -1;
}

/* How many lines name the registration; @l is the last of them. */
static int find_line(const char *info, unsigned int source,
		     unsigned long long ident, unsigned int tag,
		     struct info_line *l)
{
	struct info_line line;
	int found = 0;

	while (next_info_line(&info, &line)) {
		if (line.source != source || line.ident != ident ||
		    line.tag != tag)
			continue;
		*l = line;
		found++;
	}
	return found;
}

static void __want_line(struct __test_metadata *_metadata, int line,
			const char *info, struct info_line want)
{
	const unsigned int always = EPOLLERR | EPOLLHUP;
	struct info_line l = { };

	ASSERT_EQ(1, find_line(info, want.source, want.ident, want.tag, &l))
		TH_LOG("line %d:\n%s", line, info);
	/* Files report these two unasked. */
	EXPECT_EQ(want.events | always, l.events | always)
		TH_LOG("line %d", line);
	EXPECT_EQ(want.flags, l.flags)
		TH_LOG("line %d", line);
	EXPECT_EQ(want.user_data, l.user_data)
		TH_LOG("line %d", line);
	EXPECT_STREQ(want.state, l.state)
		TH_LOG("line %d", line);
}

#define want_line(info, ...)						\
	__want_line(_metadata, __LINE__, info,				\
		    (struct info_line) { __VA_ARGS__ })

static void __want_field(struct __test_metadata *_metadata, int line,
			 long long value, const char *info, const char *name,
			 int base)
{
	EXPECT_EQ(value, info_field(info, name, base))
		TH_LOG("line %d: %s in\n%s", line, name, info);
}

#define want_field(value, info, name, base)				\
	__want_field(_metadata, __LINE__, value, info, name, base)

TEST_F(fdinfo, says_what_the_queue_is)
{
	struct kq q;
	char *info;

	ASSERT_EQ(0, kq_open(&q, 64));
	info = fdinfo_of(getpid(), q.fd);
	ASSERT_NE(NULL, info);
	want_field(64, info, "kevent-slots", 10);
	want_field(64, info, "kevent-rings", 10);
	want_field(0, info, "kevent-flags", 16);
	want_field(0, info, "kevent-posted", 10);
	want_field(0, info, "kevent-waiting", 10);
	want_field(0, info, "kevent-level", 10);
	want_field(0, info, "kevent-registrations", 10);
	EXPECT_EQ(0, info_lines(info));
	free(info);

	/* With something in the old slots, so that they stay */
	ASSERT_EQ(1, kq_add_user(&q, 1, KEVENT_USER_COUNT, 0, 1));
	ASSERT_EQ(1, kq_trigger(&q, 1, 1, 0));
	ASSERT_EQ(1, kq_grow(&q, 256));
	info = fdinfo_of(getpid(), q.fd);
	ASSERT_NE(NULL, info);
	want_field(256, info, "kevent-slots", 10);
	want_field(64 + 256, info, "kevent-rings", 10);
	want_field(1, info, "kevent-posted", 10);
	want_field(1, info, "kevent-registrations", 10);
	free(info);
	kq_close(&q);
}

TEST_F(fdinfo, says_what_becomes_of_each_registration)
{
	const struct kq *q = &self->q;
	int idle_fd = open_eventfd();
	struct ukevent ev;
	char *info;

	/* Disabled by what it is, when its event is claimed */
	ASSERT_EQ(1, kq_add_user(q, 5, KEVENT_USER_COUNT, KEVENT_DISPATCH,
				 0x55));
	ASSERT_EQ(1, kq_trigger(q, 5, 1, 0));
	ASSERT_EQ(1, kq_collect(&self->q, BY_RING, &ev, 1));
	/* and by hand */
	ASSERT_EQ(1, kq_add_user(q, 4, KEVENT_USER_FLAGS, 0, 0x44));
	ASSERT_EQ(1, kq_op(q, KEVENT_SOURCE_USER, KEVENT_OP_DISABLE, 4, 0));
	for (int i = 0; i < 4; i++)
		ASSERT_EQ(1, kq_add_user(q, i, KEVENT_USER_COUNT, 0, 0x10 + i));
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, kq_trigger(q, i, 1, 0));
	ASSERT_EQ(1, kq_add_timer(q, 0, CLOCK_MONOTONIC, HOUR_NS, 0, 0x20));
	signal_eventfd(self->efd);
	ASSERT_EQ(1, kq_add_mode(q, self->efd, EPOLLIN, KEVENT_LEVEL, 0x30));
	ASSERT_EQ(1, kq_add_mode(q, idle_fd, EPOLLIN | EPOLLRDHUP, KEVENT_LEVEL,
				 0x31));

	info = fdinfo_of(getpid(), q->fd);
	ASSERT_NE(NULL, info);
	want_field(2, info, "kevent-slots", 10);
	want_field(KEVENT_RING_OVERFLOW | KEVENT_RING_LEVEL_READY, info,
		   "kevent-flags", 16);
	EXPECT_LE(2, info_field(info, "kevent-posted", 10));
	want_field(1, info, "kevent-waiting", 10);
	want_field(1, info, "kevent-level", 10);
	want_field(9, info, "kevent-registrations", 10);
	EXPECT_EQ(9, info_lines(info))
		TH_LOG("%s", info);
	want_line(info, KEVENT_SOURCE_USER, 0, 0, KEVENT_USER_COUNT,
		  KEVENT_EDGE, 0x10, "posted");
	want_line(info, KEVENT_SOURCE_USER, 1, 0, KEVENT_USER_COUNT,
		  KEVENT_EDGE, 0x11, "posted");
	want_line(info, KEVENT_SOURCE_USER, 2, 0, KEVENT_USER_COUNT,
		  KEVENT_EDGE, 0x12, "waiting");
	want_line(info, KEVENT_SOURCE_USER, 3, 0, KEVENT_USER_COUNT,
		  KEVENT_EDGE, 0x13, "idle");
	want_line(info, KEVENT_SOURCE_USER, 4, 0, KEVENT_USER_FLAGS,
		  KEVENT_EDGE, 0x44, "disabled");
	want_line(info, KEVENT_SOURCE_USER, 5, 0, KEVENT_USER_COUNT,
		  KEVENT_EDGE | KEVENT_DISPATCH, 0x55, "disabled");
	want_line(info, KEVENT_SOURCE_TIMER, 0, 0, 0, KEVENT_EDGE, 0x20,
		  "idle");
	want_line(info, KEVENT_SOURCE_FD, self->efd, 0, EPOLLIN, KEVENT_LEVEL,
		  0x30, "ready");
	want_line(info, KEVENT_SOURCE_FD, idle_fd, 0, EPOLLIN | EPOLLRDHUP,
		  KEVENT_LEVEL, 0x31, "idle");
	free(info);

	/* Being looked at changes nothing. */
	for (int i = 0; i < 2; i++)
		want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, i, 1,
			   0x10 + i);
	EXPECT_EQ(2, kq_getevents(q, NULL, SLOTS, 0, 0));
	info = fdinfo_of(getpid(), q->fd);
	ASSERT_NE(NULL, info);
	want_field(KEVENT_RING_LEVEL_READY, info, "kevent-flags", 16);
	want_field(0, info, "kevent-waiting", 10);
	want_line(info, KEVENT_SOURCE_USER, 0, 0, KEVENT_USER_COUNT,
		  KEVENT_EDGE, 0x10, "idle");
	want_line(info, KEVENT_SOURCE_USER, 2, 0, KEVENT_USER_COUNT,
		  KEVENT_EDGE, 0x12, "posted");
	free(info);
}

TEST_F(fdinfo, shows_the_largest_numbers)
{
	struct ukevent c = kq_user_change(KEVENT_OP_ADD, ~0ULL,
					  KEVENT_USER_COUNT, 0, ~0ULL);
	char *info;

	c.tag = ~0U;
	ASSERT_EQ(1, kq_apply(&self->q, c));
	info = fdinfo_of(getpid(), self->q.fd);
	ASSERT_NE(NULL, info);
	want_line(info, KEVENT_SOURCE_USER, ~0ULL, ~0U, KEVENT_USER_COUNT,
		  KEVENT_EDGE, ~0ULL, "idle");
	free(info);
}

TEST_F(fdinfo, shows_the_mode_of_each_registration)
{
	static const __u32 modes[] = {
		KEVENT_EDGE, KEVENT_EDGE | KEVENT_ONESHOT,
		KEVENT_EDGE | KEVENT_DISPATCH, KEVENT_LEVEL,
		KEVENT_LEVEL | KEVENT_ONESHOT, KEVENT_LEVEL | KEVENT_DISPATCH,
		KEVENT_EDGE | KEVENT_EXCLUSIVE,
		KEVENT_LEVEL | KEVENT_EXCLUSIVE | KEVENT_ROUND_ROBIN,
		KEVENT_EDGE | KEVENT_ALWAYS_READY,
	};
	char *info;

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		struct ukevent c = kq_mode_change(KEVENT_OP_ADD, self->efd,
						  EPOLLIN, modes[i], i);

		c.tag = i;
		ASSERT_EQ(1, kq_apply(&self->q, c));
	}
	info = fdinfo_of(getpid(), self->q.fd);
	ASSERT_NE(NULL, info);
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++)
		want_line(info, KEVENT_SOURCE_FD, self->efd, i, EPOLLIN,
			  modes[i], i, "idle");
	free(info);
}

TEST_F(fdinfo, shows_no_one_shot_that_was_claimed)
{
	for (int by = BY_RING; by <= BY_SYSCALL; by++) {
		struct info_line l;
		struct ukevent ev;
		char *info;

		for (int i = 0; i < 2; i++)
			ASSERT_EQ(1, kq_add_user(&self->q, i, KEVENT_USER_COUNT,
						 KEVENT_ONESHOT, i));
		ASSERT_EQ(1, kq_trigger(&self->q, 0, 1, 0));
		ASSERT_EQ(1, kq_collect(&self->q, by, &ev, 1));
		info = fdinfo_of(getpid(), self->q.fd);
		ASSERT_NE(NULL, info);
		EXPECT_EQ(0, find_line(info, KEVENT_SOURCE_USER, 0, 0, &l));
		want_line(info, KEVENT_SOURCE_USER, 1, 0, KEVENT_USER_COUNT,
			  KEVENT_EDGE | KEVENT_ONESHOT, 1, "idle");
		want_field(1, info, "kevent-registrations", 10);
		free(info);
		ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_USER, KEVENT_OP_DEL,
				   1, 0));
	}
}

TEST_F(fdinfo, shows_each_of_many_registrations)
{
	enum { REGISTRATIONS = 1500 };
	bool seen[REGISTRATIONS] = { };
	struct info_line l;
	const char *at;
	char *info;
	int nr = 0;

	for (int i = 0; i < REGISTRATIONS; i++)
		ASSERT_EQ(1, kq_add_user(&self->q, i, KEVENT_USER_COUNT, 0, i));
	info = fdinfo_of(getpid(), self->q.fd);
	ASSERT_NE(NULL, info);
	want_field(REGISTRATIONS, info, "kevent-registrations", 10);
	EXPECT_EQ(REGISTRATIONS, info_lines(info));
	for (at = info; next_info_line(&at, &l); nr++) {
		ASSERT_GT(REGISTRATIONS, l.ident);
		EXPECT_EQ(l.ident, l.user_data);
		EXPECT_FALSE(seen[l.ident]);
		seen[l.ident] = true;
	}
	EXPECT_EQ(REGISTRATIONS, nr);
	free(info);
}

TEST_F(fdinfo, is_for_other_processes_too)
{
	int s[2];
	pid_t pid;
	char *info;

	ASSERT_EQ(0, sync_open(s));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(s[0]);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (kq_add(&self->q, self->efd, EPOLLIN, 0x77) != 1)
			_exit(1);
		sync_post(s[1]);
		sync_wait(s[1]);
		_exit(0);
	}
	close(s[1]);
	ASSERT_TRUE(sync_wait(s[0]));
	info = fdinfo_of(pid, self->q.fd);
	ASSERT_NE(NULL, info);
	want_line(info, KEVENT_SOURCE_FD, self->efd, 0, EPOLLIN, KEVENT_EDGE,
		  0x77, "idle");
	free(info);
	close(s[0]);
	EXPECT_EQ(0, reap(pid));
}

#define INFO_IDENTS	24
#define INFO_READS	60

struct info_storm {
	struct kq q;
	int stop;
	int seed;
};

static void *info_change(void *arg)
{
	struct info_storm *st = arg;
	__u64 random = __atomic_add_fetch(&st->seed, 1, __ATOMIC_RELAXED);
	struct ukevent ev;

	while (!__atomic_load_n(&st->stop, __ATOMIC_ACQUIRE)) {
		int i = next_random(&random) % INFO_IDENTS;

		switch (next_random(&random) % 4) {
		case 0:
			kq_add_user(&st->q, i, KEVENT_USER_COUNT,
				    i % 2 ? KEVENT_ONESHOT : 0, i);
			break;
		case 1:
			kq_op(&st->q, KEVENT_SOURCE_USER, KEVENT_OP_DEL, i, 0);
			break;
		case 2:
			kq_trigger(&st->q, i, 1, 0);
			break;
		default:
			kq_collect(&st->q, BY_SYSCALL, &ev, 1);
		}
	}
	return NULL;
}

TEST_F(fdinfo, can_be_read_while_registrations_come_and_go)
{
	struct info_storm st = { .q = self->q, .seed = (__u16)random_seed() };
	pthread_t threads[2];

	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, info_change,
					    &st));
	for (int i = 0; i < INFO_READS; i++) {
		char *info = fdinfo_of(getpid(), self->q.fd);
		struct info_line l;
		const char *at;

		ASSERT_NE(NULL, info);
		EXPECT_LE(0, info_lines(info))
			TH_LOG("%s", info);
		for (at = info; next_info_line(&at, &l); ) {
			EXPECT_EQ(KEVENT_SOURCE_USER, l.source);
			EXPECT_GT(INFO_IDENTS, l.ident);
			EXPECT_EQ(l.ident, l.user_data);
		}
		free(info);
	}
	__atomic_store_n(&st.stop, 1, __ATOMIC_RELEASE);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_join(threads[i], NULL);
}

/*
 * Tracepoints
 */

#define TRACEFS	"/sys/kernel/tracing"

FIXTURE(trace) {
	struct kq q;		/* two events fill it, more can be registered */
	int efd;
	char dir[64];		/* a buffer of its own */
};

static bool trace_write(const char *dir, const char *file, const char *text)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	return write_file(path, text);
}

static bool trace_has(const char *dir, const char *file)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	return !access(path, F_OK);
}

FIXTURE_SETUP(trace)
{
	bool mounted = trace_has(TRACEFS, "trace");

	self->q.fd = -1;
	self->efd = open_eventfd();
	ASSERT_LE(0, self->efd);
	if (!mounted &&
	    (!own_mounts() || mount("none", TRACEFS, "tracefs", 0, NULL)))
		SKIP(return, "cannot mount tracefs");
	if (!trace_has(TRACEFS, "events"))
		SKIP(return, "no events in tracefs");
	if (!kq_setup_flags(_metadata, &self->q, 2, KEVENT_INIT_OVERCOMMIT))
		return;
	snprintf(self->dir, sizeof(self->dir), TRACEFS "/instances/kevent-%d",
		 getpid());
	if (mkdir(self->dir, 0750)) {
		self->dir[0] = 0;
		SKIP(return, "cannot make a trace buffer");
	}
	ASSERT_TRUE(trace_write(self->dir, "events/kevent/enable", "1"));
	ASSERT_TRUE(trace_write(self->dir, "tracing_on", "1"));
	for (int i = 0; i < 4; i++)
		ASSERT_EQ(1, kq_add_user(&self->q, i, KEVENT_USER_COUNT, 0, i));
}

FIXTURE_TEARDOWN(trace)
{
	kq_close(&self->q);
	if (self->dir[0]) {
		trace_write(self->dir, "events/kevent/enable", "0");
		rmdir(self->dir);
	}
}

#define ANY_VALUE ~0U

/*
 * How often a tracepoint has recorded that; @queue is set to what was said of
 * the queue last.
 */
static int traced(const char *dir, const char *name, unsigned int source,
		  unsigned long long ident, unsigned int value,
		  char queue[32])
{
	char path[160], event[32];
	char *trace, *at;
	int found = 0;

	snprintf(path, sizeof(path), "%s/trace", dir);
	snprintf(event, sizeof(event), " %s: ", name);
	trace = read_file(path);
	if (!trace)
		return -1;
	for (at = strstr(trace, event); at; at = strstr(at, event)) {
		unsigned int a_source, a_value;
		unsigned long long an_ident;
		char a_queue[32];

		at += strlen(event);
		if (sscanf(at, "queue=%31s source=%u ident=%llu value=%x",
			   a_queue, &a_source, &an_ident, &a_value) != 4) {
			found = -1;
			break;
		}
		if (a_source != source || an_ident != ident ||
		    (value != ANY_VALUE && a_value != value))
			continue;
		if (queue)
			memcpy(queue, a_queue, sizeof(a_queue));
		found++;
	}
	free(trace);
	return found;
}

static void trace_log(const char *dir)
{
	char path[160];
	char *trace;

	snprintf(path, sizeof(path), "%s/trace", dir);
	trace = read_file(path);
	if (trace)
		fputs(trace, stderr);
	free(trace);
}

static void __want_traced(struct __test_metadata *_metadata, int line,
			  const char *dir, int nr, const char *name,
			  unsigned int source, unsigned long long ident,
			  unsigned int value)
{
	EXPECT_EQ(nr, traced(dir, name, source, ident, value, NULL)) {
		TH_LOG("line %d: %s of source %u, ident %llu, value %#x in",
		       line, name, source, ident, value);
		trace_log(dir);
	}
}

#define want_traced(nr, name, source, ident, value)			\
	__want_traced(_metadata, __LINE__, self->dir, nr, name, source,	\
		      ident, value)

#define want_user(nr, name, ident, value)				\
	want_traced(nr, name, KEVENT_SOURCE_USER, ident, value)
#define want_fd(nr, name, fd, value)					\
	want_traced(nr, name, KEVENT_SOURCE_FD, fd, value)

TEST_F(trace, shows_what_is_posted)
{
	struct ukevent ev;
	int fd;

	want_user(0, "kevent_post", 1, 0x13);
	ASSERT_EQ(1, kq_trigger(&self->q, 1, 0x13, 0));
	want_user(1, "kevent_post", 1, 0x13);
	want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, 1, 0x13, 1);

	ASSERT_EQ(1, kq_add_user(&self->q, 9, KEVENT_USER_FLAGS, 0, 9));
	ASSERT_EQ(1, kq_trigger(&self->q, 9, 0, KEVENT_NOTE_FFOR |
				KEVENT_NOTE_TRIGGER | 0xabc));
	want_user(1, "kevent_post", 9, KEVENT_NOTE_TRIGGER | 0xabc);
	ASSERT_EQ(1, kq_collect(&self->q, BY_RING, &ev, 1));

	ASSERT_EQ(1, kq_add_timer(&self->q, 7, CLOCK_MONOTONIC, 1, 0, 7));
	want_value(&self->q, BY_RING, KEVENT_SOURCE_TIMER, 7, 1, 7);
	want_traced(1, "kevent_post", KEVENT_SOURCE_TIMER, 7, 1);

	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 8));
	want_fd(0, "kevent_post", self->efd, EPOLLIN);
	signal_eventfd(self->efd);
	want_fd(1, "kevent_post", self->efd, EPOLLIN);
	ASSERT_EQ(1, kq_collect(&self->q, BY_RING, &ev, 1));

	/* What an addition finds; it is writable, too, which nobody asked. */
	fd = dup(self->efd);
	ASSERT_EQ(1, kq_add(&self->q, fd, EPOLLIN, 8));
	want_fd(1, "kevent_post", fd, EPOLLIN);
	drain_eventfd(fd);

	fd = dup(self->efd);
	ASSERT_EQ(1, kq_add_mode(&self->q, fd, EPOLLIN, KEVENT_LEVEL, 8));
	signal_eventfd(fd);
	want_fd(1, "kevent_post", fd, EPOLLIN);
}

TEST_F(trace, shows_what_is_merged)
{
	ASSERT_EQ(1, kq_trigger(&self->q, 1, 3, 0));
	ASSERT_EQ(1, kq_trigger(&self->q, 1, 0x20, 0));
	/* What came to it */
	want_user(1, "kevent_post", 1, 3);
	want_user(0, "kevent_post", 1, 0x20);
	want_user(1, "kevent_merge", 1, 0x20);
	want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, 1, 0x23, 1);

	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 8));
	signal_eventfd(self->efd);
	signal_eventfd(self->efd);
	want_fd(1, "kevent_post", self->efd, EPOLLIN);
	want_fd(1, "kevent_merge", self->efd, EPOLLIN);
}

TEST_F(trace, shows_what_waits)
{
	for (int i = 0; i < 4; i++)
		ASSERT_EQ(1, kq_trigger(&self->q, i, 0x10 + i, 0));
	for (int i = 0; i < 4; i++) {
		want_user(i < 2, "kevent_post", i, 0x10 + i);
		want_user(i >= 2, "kevent_overflow", i, 0x10 + i);
	}
	/* It is one more to come, and merged as any other. */
	ASSERT_EQ(1, kq_trigger(&self->q, 3, 5, 0));
	want_user(0, "kevent_overflow", 3, 5);
	want_user(1, "kevent_merge", 3, 5);
}

TEST_F(trace, shows_what_is_cancelled)
{
	const struct kq *q = &self->q;
	struct ukevent ev;
	int copy;

	ASSERT_EQ(1, kq_trigger(q, 0, 3, 0));
	ASSERT_EQ(1, kq_trigger(q, 0, 4, 0));
	want_user(0, "kevent_cancel", 0, 7);
	ASSERT_EQ(1, kq_op(q, KEVENT_SOURCE_USER, KEVENT_OP_DEL, 0, 0));
	/* All that was in it */
	want_user(1, "kevent_cancel", 0, 7);

	ASSERT_EQ(1, kq_trigger(q, 1, 5, 0));
	ASSERT_EQ(1, kq_op(q, KEVENT_SOURCE_USER, KEVENT_OP_DISABLE, 1, 0));
	want_user(1, "kevent_cancel", 1, 5);

	/* What waits for room */
	ASSERT_EQ(1, kq_trigger(q, 2, 6, 0));
	want_user(1, "kevent_overflow", 2, 6);
	ASSERT_EQ(1, kq_op(q, KEVENT_SOURCE_USER, KEVENT_OP_DEL, 2, 0));
	want_user(1, "kevent_cancel", 2, 6);
	EXPECT_EQ(0, kq_collect(&self->q, BY_RING, &ev, 1));

	copy = dup(self->efd);
	ASSERT_EQ(1, kq_add(q, self->efd, EPOLLIN, 8));
	signal_eventfd(copy);
	ASSERT_EQ(0, close(self->efd));
	want_fd(1, "kevent_cancel", self->efd, EPOLLIN);

	/* With no event there is nothing to cancel. */
	ASSERT_EQ(1, kq_op(q, KEVENT_SOURCE_USER, KEVENT_OP_DEL, 3, 0));
	want_user(0, "kevent_cancel", 3, ANY_VALUE);
}

TEST_F(trace, shows_what_is_collected)
{
	struct ukevent ev;

	ASSERT_EQ(1, kq_trigger(&self->q, 1, 3, 0));
	ASSERT_EQ(1, kq_trigger(&self->q, 1, 4, 0));
	want_user(0, "kevent_collect", 1, 7);
	want_value(&self->q, BY_SYSCALL, KEVENT_SOURCE_USER, 1, 7, 1);
	want_user(1, "kevent_collect", 1, 7);

	for (int level = 0; level < 2; level++) {
		ASSERT_EQ(1, kq_set_mode(&self->q, self->efd, EPOLLIN,
					 level ? KEVENT_LEVEL : KEVENT_EDGE,
					 8));
		signal_eventfd(self->efd);
		want_fd(level, "kevent_collect", self->efd, EPOLLIN);
		ASSERT_EQ(1, kq_next(&self->q, BY_SYSCALL, &ev));
		want_fd(level + 1, "kevent_collect", self->efd, EPOLLIN);
	}

	/* The kernel does not see what is claimed from the ring. */
	drain_eventfd(self->efd);
	ASSERT_EQ(1, kq_trigger(&self->q, 2, 9, 0));
	want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, 2, 9, 2);
	EXPECT_EQ(0, kq_collect(&self->q, BY_SYSCALL, &ev, 1));
	want_user(0, "kevent_collect", 2, 9);
	/* It was looked at, and is not so any more. */
	want_fd(0, "kevent_collect", self->efd, 0);
}

TEST_F(trace, tells_queues_apart)
{
	char one[32] = "", again[32] = "", other[32] = "";
	struct kq q;

	ASSERT_EQ(0, kq_open(&q, 2));
	ASSERT_EQ(1, kq_add_user(&q, 40, KEVENT_USER_COUNT, 0, 0));
	ASSERT_EQ(1, kq_trigger(&self->q, 1, 1, 0));
	ASSERT_EQ(1, kq_trigger(&self->q, 2, 1, 0));
	ASSERT_EQ(1, kq_trigger(&q, 40, 1, 0));
	EXPECT_EQ(1, traced(self->dir, "kevent_post", KEVENT_SOURCE_USER, 1, 1,
			    one));
	EXPECT_EQ(1, traced(self->dir, "kevent_post", KEVENT_SOURCE_USER, 2, 1,
			    again));
	EXPECT_EQ(1, traced(self->dir, "kevent_post", KEVENT_SOURCE_USER, 40, 1,
			    other));
	EXPECT_STREQ(one, again);
	/* The kernel needs some randomness to tell. */
	if (one[0] != '(')
		EXPECT_STRNE(one, other);
	kq_close(&q);
}

TEST_F(trace, shows_what_is_enabled)
{
	ASSERT_TRUE(trace_write(self->dir, "events/kevent/enable", "0"));
	ASSERT_EQ(1, kq_trigger(&self->q, 1, 1, 0));
	want_user(0, "kevent_post", 1, 1);
	ASSERT_TRUE(trace_write(self->dir, "events/kevent/kevent_merge/enable",
				"1"));
	ASSERT_EQ(1, kq_trigger(&self->q, 2, 2, 0));
	ASSERT_EQ(1, kq_trigger(&self->q, 2, 3, 0));
	want_user(0, "kevent_post", 2, 2);
	want_user(1, "kevent_merge", 2, 3);
}

TEST_F(trace, can_be_filtered_by_every_field)
{
	ASSERT_TRUE(trace_write(self->dir, "events/kevent/kevent_post/filter",
				"source == 3 && ident == 1 && value > 4"));
	ASSERT_EQ(1, kq_trigger(&self->q, 0, 5, 0));
	ASSERT_EQ(1, kq_trigger(&self->q, 1, 5, 0));
	want_user(0, "kevent_post", 0, 5);
	want_user(1, "kevent_post", 1, 5);
	want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, 0, 5, 0);
	want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, 1, 5, 1);
	ASSERT_EQ(1, kq_trigger(&self->q, 1, 4, 0));
	want_user(0, "kevent_post", 1, 4);
}

TEST_HARNESS_MAIN
