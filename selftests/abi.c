// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: the layout of the structures, and what the system calls refuse.
 */
#include "kevent_util.h"

#include <assert.h>
#include <limits.h>
#include <linux/io_uring.h>
#include <stddef.h>

/* With every offset and the size as they are here, there are no holes. */
#define ASSERT_OFFSET(type, field, offset) \
	static_assert(offsetof(struct type, field) == (offset), #type)

ASSERT_OFFSET(kevent_params, flags, 0);
ASSERT_OFFSET(kevent_params, slots, 4);
ASSERT_OFFSET(kevent_params, header_size, 8);
ASSERT_OFFSET(kevent_params, slots_size, 16);
ASSERT_OFFSET(kevent_params, node, 24);
ASSERT_OFFSET(kevent_params, resv32, 28);
ASSERT_OFFSET(kevent_params, resv, 32);
static_assert(sizeof(struct kevent_params) == 48, "kevent_params");

ASSERT_OFFSET(kevent_ring, compat, 0);
ASSERT_OFFSET(kevent_ring, incompat, 4);
ASSERT_OFFSET(kevent_ring, slots, 8);
ASSERT_OFFSET(kevent_ring, slot_size, 12);
ASSERT_OFFSET(kevent_ring, flags, 16);
ASSERT_OFFSET(kevent_ring, rings, 20);
ASSERT_OFFSET(kevent_ring, resv, 24);
static_assert(sizeof(struct kevent_ring) == 64, "kevent_ring");

ASSERT_OFFSET(kevent_slot, word, 0);
ASSERT_OFFSET(kevent_slot, user_data, 8);
ASSERT_OFFSET(kevent_slot, ident, 16);
ASSERT_OFFSET(kevent_slot, source, 24);
ASSERT_OFFSET(kevent_slot, flags, 26);
ASSERT_OFFSET(kevent_slot, tag, 28);
static_assert(sizeof(struct kevent_slot) == 32, "kevent_slot");

ASSERT_OFFSET(ukevent, ident, 0);
ASSERT_OFFSET(ukevent, source, 8);
ASSERT_OFFSET(ukevent, op, 10);
ASSERT_OFFSET(ukevent, flags, 12);
ASSERT_OFFSET(ukevent, events, 16);
ASSERT_OFFSET(ukevent, result, 20);
ASSERT_OFFSET(ukevent, user_data, 24);
ASSERT_OFFSET(ukevent, data, 32);
ASSERT_OFFSET(ukevent, fflags, 40);
ASSERT_OFFSET(ukevent, tag, 44);
ASSERT_OFFSET(ukevent, interval, 48);
ASSERT_OFFSET(ukevent, resv, 56);
static_assert(sizeof(struct ukevent) == 64, "ukevent");

ASSERT_OFFSET(kevent_getopts, size, 0);
ASSERT_OFFSET(kevent_getopts, flags, 4);
ASSERT_OFFSET(kevent_getopts, sigmask, 8);
ASSERT_OFFSET(kevent_getopts, sigsetsize, 16);
ASSERT_OFFSET(kevent_getopts, clock, 20);
ASSERT_OFFSET(kevent_getopts, min_wait, 24);
ASSERT_OFFSET(kevent_getopts, changes, 32);
ASSERT_OFFSET(kevent_getopts, nr_changes, 40);
ASSERT_OFFSET(kevent_getopts, change_flags, 44);
ASSERT_OFFSET(kevent_getopts, resv, 48);
static_assert(sizeof(struct kevent_getopts) == 64, "kevent_getopts");

#define ASSERT_VALUE(name, value) static_assert((name) == (value), #name)

ASSERT_VALUE(KEVENT_PARAMS_SIZE_VER0, 48);
ASSERT_VALUE(KEVENT_INIT_OVERCOMMIT, 1);
ASSERT_VALUE(KEVENT_INIT_NODE, 2);
ASSERT_VALUE(KEVENT_INIT_LIFO, 4);
ASSERT_VALUE(KEVENT_MAX_SLOTS, 65536);
ASSERT_VALUE(KEVENT_OFF_HEADER, 0);
ASSERT_VALUE(KEVENT_OFF_SLOTS(1), 0x10000);
ASSERT_VALUE(KEVENT_OFF_SLOTS(1024), 0x4000000);
ASSERT_VALUE(KEVENT_OFF_SLOTS(KEVENT_MAX_SLOTS), 0x100000000);
ASSERT_VALUE(KEVENT_RING_OVERFLOW, 1);
ASSERT_VALUE(KEVENT_RING_LEVEL_READY, 2);
ASSERT_VALUE(KEVENT_RING_INCOMPAT_GROWN, 1);
ASSERT_VALUE(KEVENT_WORD_READY, 1);

ASSERT_VALUE(KEVENT_SOURCE_QUEUE, 0);
ASSERT_VALUE(KEVENT_SOURCE_FD, 1);
ASSERT_VALUE(KEVENT_SOURCE_TIMER, 2);
ASSERT_VALUE(KEVENT_SOURCE_USER, 3);
ASSERT_VALUE(KEVENT_FD_HINT, 0x80000000);
ASSERT_VALUE(KEVENT_TIMER_CLOCK, 0xff);
ASSERT_VALUE(KEVENT_TIMER_ABS, 0x100);
ASSERT_VALUE(KEVENT_TIMER_CANCEL_ON_SET, 0x200);
ASSERT_VALUE(KEVENT_TIMER_CANCELED, 0x80000000);
ASSERT_VALUE(KEVENT_USER_COUNT, 1);
ASSERT_VALUE(KEVENT_USER_FLAGS, 2);
ASSERT_VALUE(KEVENT_NOTE_FFLAGS, 0x00ffffff);
ASSERT_VALUE(KEVENT_NOTE_TRIGGER, 0x01000000);
ASSERT_VALUE(KEVENT_NOTE_FFNOP, 0x00000000);
ASSERT_VALUE(KEVENT_NOTE_FFAND, 0x40000000);
ASSERT_VALUE(KEVENT_NOTE_FFOR, 0x80000000);
ASSERT_VALUE(KEVENT_NOTE_FFCOPY, 0xc0000000);
ASSERT_VALUE(KEVENT_NOTE_FFCTRL, 0xc0000000);
ASSERT_VALUE(KEVENT_COUNT_MAX, 0x7fffffff);

ASSERT_VALUE(KEVENT_OP_ADD, 1);
ASSERT_VALUE(KEVENT_OP_MOD, 2);
ASSERT_VALUE(KEVENT_OP_DEL, 3);
ASSERT_VALUE(KEVENT_OP_SET, 4);
ASSERT_VALUE(KEVENT_OP_ENABLE, 5);
ASSERT_VALUE(KEVENT_OP_DISABLE, 6);
ASSERT_VALUE(KEVENT_OP_TRIGGER, 7);
ASSERT_VALUE(KEVENT_OP_MOVE, 8);
ASSERT_VALUE(KEVENT_OP_GROW, 9);
ASSERT_VALUE(KEVENT_OP_WAKE, 10);

ASSERT_VALUE(KEVENT_EDGE, 1);
ASSERT_VALUE(KEVENT_LEVEL, 2);
ASSERT_VALUE(KEVENT_ONESHOT, 4);
ASSERT_VALUE(KEVENT_DISPATCH, 8);
ASSERT_VALUE(KEVENT_DISABLED, 16);
ASSERT_VALUE(KEVENT_EXCLUSIVE, 32);
ASSERT_VALUE(KEVENT_ROUND_ROBIN, 64);
ASSERT_VALUE(KEVENT_ALWAYS_READY, 128);
ASSERT_VALUE(KEVENT_CTL_RESULTS, 1);
ASSERT_VALUE(KEVENT_GETOPTS_SIZE_VER0, 64);
ASSERT_VALUE(KEVENT_GET_ABSTIME, 1);

/* What is behind the last of each */
#define OP_UNKNOWN		(KEVENT_OP_WAKE + 1)
#define SOURCE_UNKNOWN		(KEVENT_SOURCE_USER + 1)
#define MODE_UNKNOWN_BIT	8

/* The ring of most queues here */
#define SLOTS			8

/* Times up to here are exact; what is later never comes. */
#define NEVER			((1ULL << 63) - 1)

static long page_size(void)
{
	return sysconf(_SC_PAGESIZE);
}

/* Two pages, of which the second is not there; gives where it would begin. */
static unsigned char *map_before_hole(void)
{
	unsigned char *p = mmap(NULL, 2 * page_size(), PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	munmap(p + page_size(), page_size());
	return p + page_size();
}

static int lowest_free_fd(void)
{
	int fd = dup(0);

	close(fd);
	return fd;
}

TEST(the_word_macros_take_the_word_apart)
{
	__u64 word = 0x8000001dULL << 32 | 0x7ffffff1ULL << 1 | 1;

	EXPECT_EQ(0x8000001d, KEVENT_WORD_VALUE(word));
	EXPECT_EQ(0x7ffffff1, KEVENT_WORD_GEN(word));
	EXPECT_EQ(0x7ffffff1ULL << 1, KEVENT_WORD_CLAIMED(word));
	EXPECT_EQ(0x7fffffff, KEVENT_WORD_GEN(~0ULL));
	EXPECT_EQ(0, KEVENT_WORD_GEN(0xffffffff00000001ULL));
}

/*
 * kevent_init()
 */

FIXTURE(init) {
	struct {
		struct kevent_params params;
		unsigned char more[64];
	} big;
	struct kevent_params *params;
};

FIXTURE_SETUP(init)
{
	struct kq q;

	self->params = &self->big.params;
	self->params->slots = 8;
	if (kq_setup(_metadata, &q, 1))
		kq_close(&q);
}

FIXTURE_TEARDOWN(init)
{
}

TEST_F(init, gives_a_close_on_exec_descriptor)
{
	int fd = sys_kevent_init(self->params, sizeof(*self->params));

	ASSERT_LE(0, fd);
	EXPECT_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD));
	EXPECT_EQ(0, close(fd));
}

TEST_F(init, says_how_large_the_ring_is)
{
	const struct kevent_params *p = self->params;
	int fd;

	self->params->header_size = ~0ULL;
	self->params->slots_size = ~0ULL;
	fd = sys_kevent_init(self->params, sizeof(*self->params));
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, p->flags);
	EXPECT_EQ(8, p->slots);
	EXPECT_LE(sizeof(struct kevent_ring), p->header_size);
	EXPECT_EQ(0, p->header_size % page_size());
	EXPECT_LE(8 * sizeof(struct kevent_slot), p->slots_size);
	EXPECT_EQ(0, p->slots_size % page_size());
	EXPECT_EQ(0, p->node);
	EXPECT_EQ(0, p->resv32);
	EXPECT_EQ(0, p->resv[0] | p->resv[1]);
}

TEST_F(init, rounds_the_slots_up_to_a_power_of_two)
{
	static const struct {
		__u32 in, out;
	} tab[] = {
		{ 1, 1 }, { 2, 2 }, { 3, 4 }, { 4, 4 }, { 5, 8 }, { 1000, 1024 },
		{ 32769, 65536 }, { KEVENT_MAX_SLOTS, KEVENT_MAX_SLOTS },
	};

	for (size_t i = 0; i < ARRAY_SIZE(tab); i++) {
		struct kq q;

		ASSERT_EQ(0, kq_open(&q, tab[i].in))
			TH_LOG("%u slots", tab[i].in);
		EXPECT_EQ(tab[i].out, q.params.slots);
		EXPECT_EQ(tab[i].out, q.map.nr_slots);
		EXPECT_LE((__u64)tab[i].out * q.map.slot_size,
			  q.params.slots_size);
		kq_close(&q);
	}
}

TEST_F(init, refuses_a_size_below_the_first_version)
{
	EXPECT_EQ(-EINVAL, sys_kevent_init(self->params, 0));
	EXPECT_EQ(-EINVAL, sys_kevent_init(self->params,
					   KEVENT_PARAMS_SIZE_VER0 - 1));
}

TEST_F(init, takes_a_larger_size_if_the_rest_is_zero)
{
	EXPECT_LE(0, sys_kevent_init(self->params, sizeof(self->big)));
}

TEST_F(init, refuses_a_larger_size_if_the_rest_is_not_zero)
{
	self->big.more[sizeof(self->big.more) - 1] = 1;
	EXPECT_EQ(-E2BIG, sys_kevent_init(self->params, sizeof(self->big)));
}

TEST_F(init, takes_a_page_and_refuses_more)
{
	struct kevent_params *p = calloc(2, page_size());

	ASSERT_NE(NULL, p);
	p->slots = 1;
	EXPECT_LE(0, sys_kevent_init(p, page_size()));
	EXPECT_EQ(-E2BIG, sys_kevent_init(p, page_size() + 1));
}

TEST_F(init, takes_the_flags_that_there_are)
{
	static const __u32 all = KEVENT_INIT_OVERCOMMIT | KEVENT_INIT_NODE |
				 KEVENT_INIT_LIFO;

	for (__u32 flags = 0; flags <= all; flags++) {
		int fd;

		self->params->flags = flags;
		fd = sys_kevent_init(self->params, sizeof(*self->params));
		ASSERT_LE(0, fd)
			TH_LOG("flags %#x: %d", flags, fd);
		EXPECT_EQ(flags, self->params->flags);
		EXPECT_EQ(0, self->params->node);
		close(fd);
	}
}

TEST_F(init, refuses_a_node_without_the_flag)
{
	static const __u32 nodes[] = { 1, 1U << 31, ~0U };

	for (size_t i = 0; i < ARRAY_SIZE(nodes); i++) {
		self->params->node = nodes[i];
		EXPECT_EQ(-EINVAL, sys_kevent_init(self->params,
						   sizeof(*self->params)))
			TH_LOG("node %u", nodes[i]);
	}
}

/* No machine has so many. */
TEST_F(init, refuses_a_node_that_is_not_there)
{
	static const __u32 nodes[] = { 4096, INT_MAX, 1U << 31, ~0U };

	self->params->flags = KEVENT_INIT_NODE;
	for (size_t i = 0; i < ARRAY_SIZE(nodes); i++) {
		self->params->node = nodes[i];
		EXPECT_EQ(-EINVAL, sys_kevent_init(self->params,
						   sizeof(*self->params)))
			TH_LOG("node %u", nodes[i]);
	}
}

TEST_F(init, refuses_unknown_flags)
{
	for (int bit = 3; bit < 32; bit++) {
		self->params->flags = 1U << bit;
		EXPECT_EQ(-EINVAL, sys_kevent_init(self->params,
						   sizeof(*self->params)))
			TH_LOG("bit %d", bit);
	}
}

TEST_F(init, refuses_reserved_fields_that_are_not_zero)
{
	for (size_t i = 0; i < ARRAY_SIZE(self->params->resv); i++) {
		self->params->resv[i] = 1ULL << 63;
		EXPECT_EQ(-EINVAL, sys_kevent_init(self->params,
						   sizeof(*self->params)))
			TH_LOG("resv[%zu]", i);
		self->params->resv[i] = 0;
	}
	self->params->resv32 = 1;
	EXPECT_EQ(-EINVAL, sys_kevent_init(self->params,
					   sizeof(*self->params)));
}

TEST_F(init, refuses_a_bad_number_of_slots)
{
	static const __u32 bad[] = {
		0, KEVENT_MAX_SLOTS + 1, 1U << 31, ~0U,
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		self->params->slots = bad[i];
		EXPECT_EQ(-EINVAL, sys_kevent_init(self->params,
						   sizeof(*self->params)))
			TH_LOG("%u slots", bad[i]);
	}
}

TEST_F(init, refuses_a_bad_pointer)
{
	unsigned char *hole = map_before_hole();

	ASSERT_NE(NULL, hole);
	EXPECT_EQ(-EFAULT, sys_kevent_init(NULL, sizeof(*self->params)));
	EXPECT_EQ(-EFAULT, sys_kevent_init((void *)hole, sizeof(*self->params)));
	EXPECT_EQ(-EFAULT, sys_kevent_init((void *)(hole - 8),
					   sizeof(*self->params)));
}

/* The parameters can be read, but not be written back. */
TEST_F(init, leaves_no_descriptor_behind_when_it_fails)
{
	struct kevent_params *p = mmap(NULL, page_size(), PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = lowest_free_fd();

	ASSERT_NE(MAP_FAILED, p);
	p->slots = 8;
	ASSERT_EQ(0, mprotect(p, page_size(), PROT_READ));
	EXPECT_EQ(-EFAULT, sys_kevent_init(p, sizeof(*p)));
	EXPECT_EQ(fd, lowest_free_fd());
}

TEST_F(init, respects_the_limit_of_descriptors)
{
	struct rlimit lim;

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &lim));
	lim.rlim_cur = lowest_free_fd();
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &lim));
	EXPECT_EQ(-EMFILE, sys_kevent_init(self->params, sizeof(*self->params)));
}

/*
 * kevent_ctl()
 */

FIXTURE(ctl) {
	struct kq q;
	int efd;
	struct ukevent add;
};

FIXTURE_SETUP(ctl)
{
	self->efd = open_eventfd();
	ASSERT_LE(0, self->efd);
	self->add = kq_fd_change(KEVENT_OP_ADD, self->efd, EPOLLIN, 1);
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(ctl)
{
	kq_close(&self->q);
}

/* What @change alone gives, without and with KEVENT_CTL_RESULTS */
static void __want_refused(struct __test_metadata *_metadata, int line,
			   struct kq *q, int err, struct ukevent change)
{
	struct ukevent copy = change;

	EXPECT_EQ(err, sys_kevent_ctl(q->fd, &copy, 1, 0))
		TH_LOG("line %d", line);
	EXPECT_EQ(0, memcmp(&copy, &change, sizeof(copy)))
		TH_LOG("line %d: the change was written to", line);
	EXPECT_EQ(0, sys_kevent_ctl(q->fd, &copy, 1, KEVENT_CTL_RESULTS))
		TH_LOG("line %d", line);
	EXPECT_EQ(err, copy.result)
		TH_LOG("line %d", line);
	copy.result = change.result;
	EXPECT_EQ(0, memcmp(&copy, &change, sizeof(copy)))
		TH_LOG("line %d: more than the result was written", line);
}

#define want_refused(err, change) \
	__want_refused(_metadata, __LINE__, &self->q, err, change)

TEST_F(ctl, needs_the_descriptor_of_a_queue)
{
	struct ukevent *add = &self->add;
	int opath = open("/dev/null", O_PATH | O_CLOEXEC);

	EXPECT_EQ(-EBADF, sys_kevent_ctl(-1, add, 1, 0));
	EXPECT_EQ(-EBADF, sys_kevent_ctl(lowest_free_fd(), add, 1, 0));
	EXPECT_EQ(-EINVAL, sys_kevent_ctl(self->efd, add, 1, 0));
	ASSERT_LE(0, opath);
	EXPECT_EQ(-EBADF, sys_kevent_ctl(opath, add, 1, 0));
}

TEST_F(ctl, refuses_unknown_flags)
{
	for (int bit = 1; bit < 32; bit++) {
		EXPECT_EQ(-EINVAL, sys_kevent_ctl(self->q.fd, &self->add, 1,
						  1U << bit))
			TH_LOG("bit %d", bit);
	}
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->efd));
}

TEST_F(ctl, refuses_more_changes_than_it_can_count)
{
	EXPECT_EQ(-EINVAL, sys_kevent_ctl(self->q.fd, &self->add,
					  INT_MAX / 64 + 1, 0));
	EXPECT_EQ(-EINVAL, sys_kevent_ctl(self->q.fd, &self->add, UINT_MAX, 0));
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->efd));
}

TEST_F(ctl, does_nothing_with_no_changes)
{
	EXPECT_EQ(0, sys_kevent_ctl(self->q.fd, &self->add, 0, 0));
	EXPECT_EQ(0, sys_kevent_ctl(self->q.fd, NULL, 0, 0));
	EXPECT_EQ(0, sys_kevent_ctl(self->q.fd, NULL, 0, KEVENT_CTL_RESULTS));
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->efd));
}

TEST_F(ctl, refuses_a_bad_pointer)
{
	unsigned char *hole = map_before_hole();

	ASSERT_NE(NULL, hole);
	EXPECT_EQ(-EFAULT, sys_kevent_ctl(self->q.fd, NULL, 1, 0));
	EXPECT_EQ(-EFAULT, sys_kevent_ctl(self->q.fd, (void *)hole, 1, 0));
	EXPECT_EQ(-EFAULT, sys_kevent_ctl(self->q.fd, (void *)hole, 1,
					  KEVENT_CTL_RESULTS));
}

TEST_F(ctl, refuses_an_unknown_source)
{
	static const __u16 bad[] = { SOURCE_UNKNOWN, 0x101, 0xffff };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct ukevent change = self->add;

		change.source = bad[i];
		want_refused(-EINVAL, change);
		for (int op = KEVENT_OP_ADD; op < OP_UNKNOWN; op++)
			want_refused(-EINVAL, kq_change(bad[i], op, 1, 0));
	}
}

TEST_F(ctl, refuses_an_unknown_operation)
{
	static const __u16 bad[] = { 0, OP_UNKNOWN, 0x101, 0xffff };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct ukevent change = self->add;

		change.op = bad[i];
		want_refused(-EINVAL, change);
		for (int source = 0; source < SOURCE_UNKNOWN; source++)
			want_refused(-EINVAL, kq_change(source, bad[i], 0, 0));
	}
}

TEST_F(ctl, takes_every_bit_that_poll_can_report)
{
	static const __u32 bits[] = {
		EPOLLIN, EPOLLPRI, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDNORM,
		EPOLLRDBAND, EPOLLWRNORM, EPOLLWRBAND, EPOLLMSG, EPOLLRDHUP,
	};

	for (size_t i = 0; i < ARRAY_SIZE(bits); i++) {
		EXPECT_EQ(1, kq_add(&self->q, self->efd, bits[i], 1))
			TH_LOG("events %#x", bits[i]);
		EXPECT_EQ(1, kq_mod(&self->q, self->efd, bits[i], 1))
			TH_LOG("events %#x", bits[i]);
		EXPECT_EQ(1, kq_del(&self->q, self->efd));
		/* Of what was there at once, cancelled slots are left. */
		want_none(&self->q, BY_RING);
	}
}

/* Who asks for nothing learns of errors and hang-ups. */
TEST_F(ctl, takes_an_empty_mask)
{
	EXPECT_EQ(1, kq_add(&self->q, self->efd, 0, 1));
	EXPECT_EQ(1, kq_mod(&self->q, self->efd, 0, 2));
	signal_eventfd(self->efd);
	want_none(&self->q, BY_RING);
}

TEST_F(ctl, refuses_bits_that_poll_cannot_report)
{
	static const __u32 bad[] = {
		EPOLLET, EPOLLONESHOT, EPOLLWAKEUP, EPOLLEXCLUSIVE,
		KEVENT_FD_HINT, 1U << 27, 1U << 20, 1U << 16,
	};
	struct ukevent mod = kq_fd_change(KEVENT_OP_MOD, self->efd, EPOLLIN, 1);

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		self->add.events = EPOLLIN | bad[i];
		want_refused(-EINVAL, self->add);
	}
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		mod.events = EPOLLIN | bad[i];
		mod.op = KEVENT_OP_MOD;
		want_refused(-EINVAL, mod);
		mod.op = KEVENT_OP_SET;
		want_refused(-EINVAL, mod);
	}
}

TEST_F(ctl, refuses_what_is_no_open_descriptor)
{
	int opath = open("/dev/null", O_PATH | O_CLOEXEC);
	struct kq other;
	int err = kq_open(&other, 1);
	const __u64 bad[] = {
		lowest_free_fd(), opath, INT_MAX, 1ULL << 31, ~0U, ~0ULL,
		/* The descriptor is good if only 32 bits are looked at. */
		1ULL << 32 | self->efd, 1ULL << 63 | self->efd,
	};

	ASSERT_EQ(0, err);
	ASSERT_LE(0, opath);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		for (int op = KEVENT_OP_ADD; op <= KEVENT_OP_MOVE; op++) {
			struct ukevent change = kq_fd_change(op, 0, EPOLLIN, 1);

			if (op == KEVENT_OP_TRIGGER)
				continue;
			if (op == KEVENT_OP_MOVE)
				change.data = other.fd;
			change.ident = bad[i];
			want_refused(-EBADF, change);
		}
	}
	kq_close(&other);
}

TEST_F(ctl, refuses_files_that_are_always_ready)
{
	int fds[] = {
		memfd_create("kevent", MFD_CLOEXEC),
		open("/dev/null", O_RDWR | O_CLOEXEC),
		open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC),
	};

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		ASSERT_LE(0, fds[i]);
		self->add.ident = fds[i];
		want_refused(-EPERM, self->add);
	}
}

static int open_io_uring(void)
{
#ifdef __NR_io_uring_setup
	struct io_uring_params params = { };

	return syscall(__NR_io_uring_setup, 1, &params);
#else
	return -1;
#endif
}

/* Each of these waits for files itself, so watching one could recurse. */
TEST_F(ctl, refuses_files_that_watch_files)
{
	struct kq other;
	int fds[4];
	int uring;

	ASSERT_EQ(0, kq_open(&other, 1));
	fds[0] = self->q.fd;
	fds[1] = other.fd;
	fds[2] = epoll_create1(EPOLL_CLOEXEC);
	ASSERT_LE(0, fds[2]);
	fds[3] = dup(self->q.fd);
	ASSERT_LE(0, fds[3]);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		self->add.ident = fds[i];
		want_refused(-ELOOP, self->add);
	}

	/* Can be compiled out, or be forbidden. */
	uring = open_io_uring();
	if (uring >= 0) {
		self->add.ident = uring;
		want_refused(-ELOOP, self->add);
	}
}

TEST_F(ctl, refuses_to_add_twice)
{
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	want_refused(-EEXIST, self->add);
	self->add.events = EPOLLOUT;
	self->add.user_data = 2;
	want_refused(-EEXIST, self->add);

	/* The registration is what it was. */
	signal_eventfd(self->efd);
	want_event(&self->q, BY_RING, self->efd, EPOLLIN, EPOLLIN, 1);
	want_none(&self->q, BY_RING);
}

TEST_F(ctl, takes_two_descriptors_of_one_file)
{
	int copy = dup(self->efd);

	ASSERT_LE(0, copy);
	EXPECT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	EXPECT_EQ(1, kq_add(&self->q, copy, EPOLLIN, 2));
	EXPECT_EQ(1, kq_del(&self->q, self->efd));
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->efd));
	EXPECT_EQ(1, kq_del(&self->q, copy));
}

TEST_F(ctl, takes_one_descriptor_in_two_queues)
{
	struct kq other;

	ASSERT_EQ(0, kq_open(&other, 1));
	EXPECT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	EXPECT_EQ(1, kq_add(&other, self->efd, EPOLLIN, 2));
	signal_eventfd(self->efd);
	want_event(&self->q, BY_RING, self->efd, EPOLLIN, EPOLLIN, 1);
	want_event(&other, BY_RING, self->efd, EPOLLIN, EPOLLIN, 2);
}

TEST_F(ctl, does_not_write_to_changes_without_being_asked)
{
	struct ukevent change = self->add;

	EXPECT_EQ(1, sys_kevent_ctl(self->q.fd, &change, 1, 0));
	EXPECT_EQ(0, memcmp(&change, &self->add, sizeof(change)));
}

/* What @change gives, and what it was if that is wrong */
static void __want_result(struct __test_metadata *_metadata, int line,
			  const struct kq *q, int result, struct ukevent change)
{
	EXPECT_EQ(result, kq_apply(q, change))
		TH_LOG("line %d: %u op %u of %lld flags %#x events %#x data %#llx fflags %#x",
		       line, change.source, change.op, change.ident,
		       change.flags, change.events, change.data, change.fflags);
}

#define want_result(result, change) \
	__want_result(_metadata, __LINE__, &self->q, result, change)

TEST_F(ctl, refuses_to_move_to_what_is_no_other_queue)
{
	struct ukevent move = kq_fd_change(KEVENT_OP_MOVE, self->efd, 0, 0);
	int opath = open("/dev/null", O_PATH | O_CLOEXEC);
	int copy = dup(self->q.fd);
	struct kq other;
	int err = kq_open(&other, 1);
	const struct {
		__u64 data;
		int result;
	} tab[] = {
		{ lowest_free_fd(), -EBADF },
		{ opath, -EBADF },
		{ INT_MAX, -EBADF },
		{ 1ULL << 31, -EBADF },
		{ ~0U, -EBADF },
		{ ~0ULL, -EBADF },
		{ 1ULL << 32 | other.fd, -EBADF },
		{ 1ULL << 63 | other.fd, -EBADF },
		{ self->efd, -EINVAL },
		{ self->q.fd, -EINVAL },
		{ copy, -EINVAL },
	};

	ASSERT_EQ(0, err);
	ASSERT_LE(0, opath);
	ASSERT_LE(0, copy);
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	for (size_t i = 0; i < ARRAY_SIZE(tab); i++) {
		move.data = tab[i].data;
		want_refused(tab[i].result, move);
	}
	EXPECT_EQ(-ENOENT, kq_del(&other, self->efd));
	signal_eventfd(self->efd);
	want_event(&self->q, BY_RING, self->efd, EPOLLIN, EPOLLIN, 1);
}

/*
 * What each operation of each source takes
 */

/* The fields of a change */
enum {
	IDENT		= 1 << 0,
	TAG		= 1 << 1,
	FLAGS		= 1 << 2,
	EVENTS		= 1 << 3,
	USER_DATA	= 1 << 4,
	DATA		= 1 << 5,
	FFLAGS		= 1 << 6,
	INTERVAL	= 1 << 7,
	RESULT		= 1 << 8,
	RESV		= 1 << 9,
	FIELDS_END	= 1 << 10,
};

/* For whom nothing counts but the name */
#define NAME_ONLY \
	(FLAGS | EVENTS | USER_DATA | DATA | FFLAGS | INTERVAL | RESULT | RESV)

static void set_field(struct ukevent *change, unsigned int field, bool high)
{
	__u64 v64 = high ? 1ULL << 63 : 1;
	__u32 v32 = high ? 1U << 31 : 1;

	switch (field) {
	case IDENT:
		change->ident = v64;
		break;
	case TAG:
		change->tag = v32;
		break;
	case FLAGS:
		change->flags = v32;
		break;
	case EVENTS:
		change->events = v32;
		break;
	case USER_DATA:
		change->user_data = v64;
		break;
	case DATA:
		change->data = v64;
		break;
	case FFLAGS:
		change->fflags = v32;
		break;
	case INTERVAL:
		change->interval = v64;
		break;
	case RESULT:
		change->result = v32;
		break;
	case RESV:
		change->resv = v64;
		break;
	}
}

/**
 * struct form - a kind of change
 * @change: one that is right.  The ident of a file and the queue to move to are
 *	filled in.
 * @zero: the fields that have to be zero
 * @unnamed: what it gives if nothing of that name is registered
 * @named: what it gives if it is
 */
struct form {
	struct ukevent change;
	unsigned int zero;
	int unnamed;
	int named;
};

#define FD(_op, ...) \
	.change = { .source = KEVENT_SOURCE_FD, .op = KEVENT_OP_##_op, ##__VA_ARGS__ }
#define TIMER(_op, ...) \
	.change = { .source = KEVENT_SOURCE_TIMER, .op = KEVENT_OP_##_op, \
		    .ident = 1, ##__VA_ARGS__ }
/* Number 1 counts, number 2 has flags. */
#define USER(_op, _ident, ...) \
	.change = { .source = KEVENT_SOURCE_USER, .op = KEVENT_OP_##_op, \
		    .ident = _ident, ##__VA_ARGS__ }
#define QUEUE(_op, ...) \
	.change = { .op = KEVENT_OP_##_op, ##__VA_ARGS__ }

#define WATCH	.flags = KEVENT_EDGE, .events = EPOLLIN
#define START	.flags = KEVENT_EDGE, .fflags = CLOCK_MONOTONIC, .data = NEVER
#define COUNT	.flags = KEVENT_EDGE, .events = KEVENT_USER_COUNT
#define NOTE	.flags = KEVENT_EDGE, .events = KEVENT_USER_FLAGS, .fflags = 0xff

static const struct form forms[] = {
	{ FD(ADD, WATCH), DATA | FFLAGS | INTERVAL, 1, -EEXIST },
	{ FD(MOD, WATCH), DATA | FFLAGS | INTERVAL, -ENOENT, 1 },
	{ FD(SET, WATCH), DATA | FFLAGS | INTERVAL, 1, 1 },
	{ FD(DEL), NAME_ONLY, -ENOENT, 1 },
	{ FD(ENABLE), NAME_ONLY, -ENOENT, 1 },
	{ FD(DISABLE), NAME_ONLY, -ENOENT, 1 },
	{ FD(MOVE), NAME_ONLY & ~DATA, -ENOENT, 1 },

	{ TIMER(ADD, START), EVENTS, 1, -EEXIST },
	{ TIMER(MOD, START), EVENTS, -ENOENT, 1 },
	{ TIMER(SET, START), EVENTS, 1, 1 },
	{ TIMER(DEL), NAME_ONLY, -ENOENT, 1 },
	{ TIMER(ENABLE), NAME_ONLY, -ENOENT, 1 },
	{ TIMER(DISABLE), NAME_ONLY, -ENOENT, 1 },
	{ TIMER(MOVE), NAME_ONLY & ~DATA, -ENOENT, 1 },

	{ USER(ADD, 1, COUNT), DATA | FFLAGS | INTERVAL, 1, -EEXIST },
	{ USER(MOD, 1, COUNT), DATA | FFLAGS | INTERVAL, -ENOENT, 1 },
	{ USER(SET, 1, COUNT), DATA | FFLAGS | INTERVAL, 1, 1 },
	{ USER(DEL, 1), NAME_ONLY, -ENOENT, 1 },
	{ USER(ENABLE, 1), NAME_ONLY, -ENOENT, 1 },
	{ USER(DISABLE, 1), NAME_ONLY, -ENOENT, 1 },
	{ USER(MOVE, 1), NAME_ONLY & ~DATA, -ENOENT, 1 },
	{ USER(TRIGGER, 1, .data = 1), NAME_ONLY & ~DATA, -ENOENT, 1 },

	{ USER(ADD, 2, NOTE), DATA | INTERVAL, 1, -EEXIST },
	{ USER(MOD, 2, NOTE), DATA | INTERVAL, -ENOENT, 1 },
	{ USER(SET, 2, NOTE), DATA | INTERVAL, 1, 1 },
	{ USER(TRIGGER, 2, .fflags = KEVENT_NOTE_TRIGGER),
	  NAME_ONLY & ~FFLAGS, -ENOENT, 1 },

	/* Not about a registration, so the name has to be zero. */
	{ QUEUE(WAKE), IDENT | TAG | NAME_ONLY, 1, 1 },
	{ QUEUE(GROW, .data = 2 * SLOTS), IDENT | TAG | (NAME_ONLY & ~DATA),
	  1, 1 },
};

FIXTURE(forms) {
	struct kq q;
	struct kq other;
	int efd;
};

FIXTURE_SETUP(forms)
{
	self->efd = open_eventfd();
	ASSERT_LE(0, self->efd);
	if (kq_setup(_metadata, &self->q, SLOTS))
		ASSERT_EQ(0, kq_open(&self->other, SLOTS));
}

FIXTURE_TEARDOWN(forms)
{
	kq_close(&self->q);
	kq_close(&self->other);
}

#define FORMS_END (forms + ARRAY_SIZE(forms))

static struct ukevent form_change(const struct form *form, int efd,
				  const struct kq *other)
{
	struct ukevent change = form->change;

	if (change.source == KEVENT_SOURCE_FD)
		change.ident = efd;
	if (change.op == KEVENT_OP_MOVE)
		change.data = other->fd;
	return change;
}

/* Registers what @change is about, unless that is the queue. */
static void form_add(struct __test_metadata *_metadata, const struct kq *q,
		     const struct ukevent *change)
{
	const struct form *form;

	if (change->source == KEVENT_SOURCE_QUEUE)
		return;
	for (form = forms; form < FORMS_END; form++) {
		struct ukevent add = form->change;

		if (add.op != KEVENT_OP_ADD || add.source != change->source)
			continue;
		if (add.source == KEVENT_SOURCE_FD)
			add.ident = change->ident;
		if (add.ident != change->ident)
			continue;
		ASSERT_EQ(1, kq_apply(q, add));
		return;
	}
	ASSERT_TRUE(false);
}

static void form_del(const struct kq *q, const struct ukevent *change)
{
	if (change->source != KEVENT_SOURCE_QUEUE)
		kq_op(q, change->source, KEVENT_OP_DEL, change->ident, 0);
}

/* The tables of the tests below would prove little if this did not hold. */
TEST_F(forms, as_they_are_in_the_table_are_right)
{
	const struct form *form;

	for (form = forms; form < FORMS_END; form++) {
		struct ukevent change = form_change(form, self->efd,
						    &self->other);

		/* The ring can grow to that size only once. */
		if (change.op == KEVENT_OP_GROW)
			continue;
		want_result(form->unnamed, change);
		form_del(&self->q, &change);
		form_add(_metadata, &self->q, &change);
		want_result(form->named, change);
		form_del(&self->q, &change);
		form_del(&self->other, &change);
		/* What was registered once is not any more. */
		want_result(form->unnamed, change);
		form_del(&self->q, &change);
	}
	for (form = forms; form < FORMS_END; form++) {
		if (form->change.op == KEVENT_OP_GROW)
			want_result(1, form->change);
	}
}

/*
 * Not all of the operations would find a registration: such a mistake is told
 * of first.
 */
TEST_F(forms, refuse_fields_that_have_to_be_zero)
{
	const struct form *form;

	for (form = forms; form < FORMS_END; form++) {
		struct ukevent change = form_change(form, self->efd,
						    &self->other);

		for (unsigned int field = 1; field < FIELDS_END; field <<= 1) {
			struct ukevent bad[2] = { change, change };

			/* Which one it is depends on the registration. */
			if (change.op == KEVENT_OP_TRIGGER &&
			    field & (DATA | FFLAGS))
				continue;
			if (!((form->zero | RESULT | RESV) & field))
				continue;
			set_field(&bad[0], field, false);
			set_field(&bad[1], field, true);
			want_refused(-EINVAL, bad[0]);
			want_refused(-EINVAL, bad[1]);
		}
	}
	EXPECT_EQ(SLOTS, self->q.map.ring->slots);
	for (form = forms; form < FORMS_END; form++) {
		struct ukevent change = form_change(form, self->efd,
						    &self->other);

		if (change.op == KEVENT_OP_DEL)
			want_result(-ENOENT, change);
	}
}

/* Each has something to say, which must be what is said in the end. */
TEST_F(forms, that_are_refused_change_nothing)
{
	struct ukevent flags = kq_user_change(KEVENT_OP_ADD, 2,
					      KEVENT_USER_FLAGS, 0, 12);
	const struct form *form;

	/* It expires at once. */
	ASSERT_EQ(1, kq_add_timer(&self->q, 1, CLOCK_MONOTONIC, 0, 0, 13));
	ASSERT_EQ(1, kq_getevents(&self->q, NULL, 1, 0, PATIENCE_MS));
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 10));
	ASSERT_EQ(1, kq_add_user(&self->q, 1, KEVENT_USER_COUNT, 0, 11));
	flags.fflags = 0xff;
	ASSERT_EQ(1, kq_apply(&self->q, flags));
	signal_eventfd(self->efd);
	ASSERT_EQ(1, kq_trigger(&self->q, 1, 5, 0));
	ASSERT_EQ(1, kq_trigger(&self->q, 2, 0, KEVENT_NOTE_TRIGGER));

	for (form = forms; form < FORMS_END; form++) {
		struct ukevent change = form_change(form, self->efd,
						    &self->other);

		for (unsigned int field = 1; field < FIELDS_END; field <<= 1) {
			struct ukevent bad[2] = { change, change };

			if (!((form->zero | RESULT | RESV) & field))
				continue;
			set_field(&bad[0], field, false);
			set_field(&bad[1], field, true);
			want_result(-EINVAL, bad[0]);
			want_result(-EINVAL, bad[1]);
		}
	}

	want_value(&self->q, BY_RING, KEVENT_SOURCE_TIMER, 1, 1, 13);
	want_event(&self->q, BY_RING, self->efd, EPOLLIN, EPOLLIN, 10);
	want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, 1, 5, 11);
	want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, 2,
		   KEVENT_NOTE_TRIGGER | 0xff, 12);
	want_none(&self->q, BY_RING);
	want_none(&self->other, BY_RING);
	EXPECT_EQ(SLOTS, self->q.map.ring->slots);
	/* Four slots are reserved, no more. */
	for (int i = 4; i < SLOTS; i++)
		EXPECT_EQ(1, kq_add_user(&self->q, i, KEVENT_USER_COUNT, 0, i));
	EXPECT_EQ(-ENOSPC, kq_add_user(&self->q, SLOTS, KEVENT_USER_COUNT, 0,
				       0));
}

/* A trigger, and what is done to the queue, belong to one source. */
TEST_F(forms, of_operations_that_a_source_has_not_are_refused)
{
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	ASSERT_EQ(1, kq_add_timer(&self->q, 1, CLOCK_MONOTONIC, NEVER, 0, 1));
	ASSERT_EQ(1, kq_add_user(&self->q, 1, KEVENT_USER_COUNT, 0, 1));
	for (int source = KEVENT_SOURCE_FD; source < SOURCE_UNKNOWN; source++) {
		const __u64 ident = source == KEVENT_SOURCE_FD ? self->efd : 1;
		struct ukevent change;

		if (source != KEVENT_SOURCE_USER) {
			change = kq_change(source, KEVENT_OP_TRIGGER, ident, 0);
			want_refused(-EINVAL, change);
			change.data = 1;
			want_refused(-EINVAL, change);
			change.data = 0;
			change.fflags = KEVENT_NOTE_TRIGGER;
			want_refused(-EINVAL, change);
		}
		change = kq_change(source, KEVENT_OP_GROW, ident, 0);
		change.data = 2 * SLOTS;
		want_refused(-EINVAL, change);
		want_refused(-EINVAL, kq_change(source, KEVENT_OP_WAKE, ident,
						0));
	}
	for (int op = KEVENT_OP_ADD; op < OP_UNKNOWN; op++) {
		struct ukevent change = kq_change(KEVENT_SOURCE_QUEUE, op, 0,
						  0);

		if (op == KEVENT_OP_GROW || op == KEVENT_OP_WAKE)
			continue;
		want_refused(-EINVAL, change);
		change.flags = KEVENT_EDGE;
		change.ident = self->efd;
		want_refused(-EINVAL, change);
	}
	want_none(&self->q, BY_SYSCALL);
	EXPECT_EQ(SLOTS, self->q.map.ring->slots);
}

/*
 * Mode flags
 */

/* As it is documented */
static bool mode_is_right(int source, int op, __u32 flags)
{
	const __u32 only_files = KEVENT_LEVEL | KEVENT_EXCLUSIVE |
				 KEVENT_ROUND_ROBIN | KEVENT_ALWAYS_READY;

	if (flags >> MODE_UNKNOWN_BIT)
		return false;
	if (!(flags & KEVENT_EDGE) == !(flags & KEVENT_LEVEL))
		return false;
	if (flags & KEVENT_ONESHOT && flags & KEVENT_DISPATCH)
		return false;
	if (flags & KEVENT_ROUND_ROBIN && !(flags & KEVENT_EXCLUSIVE))
		return false;
	if (flags & KEVENT_EXCLUSIVE && op != KEVENT_OP_ADD)
		return false;
	return source == KEVENT_SOURCE_FD || !(flags & only_files);
}

/* What is registered once for all; @op is KEVENT_OP_ADD, _MOD or _SET. */
static struct ukevent mode_change(int source, int op, int efd, __u32 flags,
				  __u64 udata)
{
	struct ukevent change;

	switch (source) {
	case KEVENT_SOURCE_FD:
		return kq_mode_change(op, efd, EPOLLIN, flags, udata);
	case KEVENT_SOURCE_TIMER:
		change = kq_timer_change(op, 1, CLOCK_MONOTONIC, NEVER, 0, 0,
					 udata);
		break;
	default:
		change = kq_user_change(op, 1, KEVENT_USER_COUNT, 0, udata);
	}
	change.flags = flags;
	return change;
}

FIXTURE(modes) {
	struct kq q;
	int efd;
	__u64 ident;
};

FIXTURE_VARIANT(modes) {
	int source;
	int op;
};

FIXTURE_VARIANT_ADD(modes, fd_add) { KEVENT_SOURCE_FD, KEVENT_OP_ADD };
FIXTURE_VARIANT_ADD(modes, fd_mod) { KEVENT_SOURCE_FD, KEVENT_OP_MOD };
FIXTURE_VARIANT_ADD(modes, fd_set) { KEVENT_SOURCE_FD, KEVENT_OP_SET };
FIXTURE_VARIANT_ADD(modes, timer_add) { KEVENT_SOURCE_TIMER, KEVENT_OP_ADD };
FIXTURE_VARIANT_ADD(modes, timer_mod) { KEVENT_SOURCE_TIMER, KEVENT_OP_MOD };
FIXTURE_VARIANT_ADD(modes, timer_set) { KEVENT_SOURCE_TIMER, KEVENT_OP_SET };
FIXTURE_VARIANT_ADD(modes, user_add) { KEVENT_SOURCE_USER, KEVENT_OP_ADD };
FIXTURE_VARIANT_ADD(modes, user_mod) { KEVENT_SOURCE_USER, KEVENT_OP_MOD };
FIXTURE_VARIANT_ADD(modes, user_set) { KEVENT_SOURCE_USER, KEVENT_OP_SET };

FIXTURE_SETUP(modes)
{
	self->efd = open_eventfd();
	ASSERT_LE(0, self->efd);
	self->ident = variant->source == KEVENT_SOURCE_FD ? self->efd : 1;
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(modes)
{
	kq_close(&self->q);
}

/* The combinations of the flags that are known */
enum { MODES = 1 << MODE_UNKNOWN_BIT };

TEST_F(modes, are_taken_in_the_combinations_that_make_sense)
{
	bool add = variant->op == KEVENT_OP_ADD;
	int right = 0;

	if (!add)
		want_result(1, mode_change(variant->source, KEVENT_OP_ADD,
					   self->efd, KEVENT_EDGE, 1));
	for (__u32 flags = 0; flags < MODES; flags++) {
		if (!mode_is_right(variant->source, variant->op, flags))
			continue;
		right++;
		want_result(1, mode_change(variant->source, variant->op,
					   self->efd, flags, 1));
		if (add)
			want_result(1, kq_change(variant->source, KEVENT_OP_DEL,
						 self->ident, 0));
	}
	EXPECT_LT(0, right);
	want_none(&self->q, BY_SYSCALL);
}

TEST_F(modes, are_refused_in_all_other_combinations)
{
	if (variant->op != KEVENT_OP_ADD)
		want_result(1, mode_change(variant->source, KEVENT_OP_ADD,
					   self->efd, KEVENT_EDGE, 1));
	for (__u32 flags = 0; flags < MODES; flags++) {
		if (mode_is_right(variant->source, variant->op, flags))
			continue;
		want_result(-EINVAL, mode_change(variant->source, variant->op,
						 self->efd, flags, 99));
	}
	for (int bit = MODE_UNKNOWN_BIT; bit < 32; bit++) {
		want_result(-EINVAL, mode_change(variant->source, variant->op,
						 self->efd,
						 KEVENT_EDGE | 1U << bit, 99));
	}

	if (variant->op == KEVENT_OP_ADD) {
		want_result(-ENOENT, kq_change(variant->source, KEVENT_OP_DEL,
					       self->ident, 0));
		return;
	}
	/* The registration is what it was. */
	switch (variant->source) {
	case KEVENT_SOURCE_FD:
		signal_eventfd(self->efd);
		want_event(&self->q, BY_RING, self->efd, EPOLLIN, EPOLLIN, 1);
		break;
	case KEVENT_SOURCE_USER:
		ASSERT_EQ(1, kq_trigger(&self->q, 1, 3, 0));
		want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, 1, 3, 1);
	}
	want_none(&self->q, BY_RING);
}

TEST_F(ctl, takes_exclusive_registrations_for_four_bits_only)
{
	const __u32 good = EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP;
	static const __u32 bits[] = {
		EPOLLIN, EPOLLPRI, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDNORM,
		EPOLLRDBAND, EPOLLWRNORM, EPOLLWRBAND, EPOLLMSG, EPOLLRDHUP,
	};
	static const __u32 modes[] = {
		KEVENT_EXCLUSIVE, KEVENT_EXCLUSIVE | KEVENT_ROUND_ROBIN,
	};

	for (size_t i = 0; i < ARRAY_SIZE(bits) * ARRAY_SIZE(modes); i++) {
		__u32 bit = bits[i / ARRAY_SIZE(modes)];
		struct ukevent change = self->add;

		change.flags = KEVENT_EDGE | modes[i % ARRAY_SIZE(modes)];
		change.events = EPOLLIN | bit;
		if (bit & good) {
			want_result(1, change);
			EXPECT_EQ(1, kq_del(&self->q, self->efd));
		} else {
			want_refused(-EINVAL, change);
		}
	}
	self->add.events = 0;
	self->add.flags |= KEVENT_EXCLUSIVE;
	want_result(1, self->add);
}

TEST_F(ctl, refuses_to_modify_an_exclusive_registration)
{
	static const __u32 modes[] = { KEVENT_EDGE, KEVENT_LEVEL };

	self->add.flags |= KEVENT_EXCLUSIVE;
	want_result(1, self->add);
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		want_refused(-EINVAL, kq_mode_change(KEVENT_OP_MOD, self->efd,
						     EPOLLIN, modes[i], 2));
		want_refused(-EINVAL, kq_mode_change(KEVENT_OP_SET, self->efd,
						     EPOLLIN, modes[i], 2));
	}
	signal_eventfd(self->efd);
	want_mode(&self->q, BY_RING, self->efd, EPOLLIN, EPOLLIN,
		  self->add.flags, 1);
	EXPECT_EQ(1, kq_del(&self->q, self->efd));
}

/*
 * Timers, user events, and the queue
 */

static const __u16 registering[] = {
	KEVENT_OP_ADD, KEVENT_OP_MOD, KEVENT_OP_SET,
};

TEST_F(ctl, takes_four_clocks_and_two_flags_of_them)
{
	static const __u32 clocks[] = {
		0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 31, 32,
		63, 64, 127, 128, 254, 255,
	};

	want_result(1, kq_timer_change(KEVENT_OP_ADD, 1, CLOCK_MONOTONIC, NEVER,
				       0, 0, 1));
	for (size_t i = 0; i < 4 * ARRAY_SIZE(clocks); i++) {
		__u32 clock = clocks[i / 4];
		bool abs = i & 1, cancel = i & 2;
		bool good = clock == CLOCK_REALTIME || clock == CLOCK_TAI ||
			    clock == CLOCK_MONOTONIC || clock == CLOCK_BOOTTIME;
		__u32 fflags = clock | (abs ? KEVENT_TIMER_ABS : 0) |
			       (cancel ? KEVENT_TIMER_CANCEL_ON_SET : 0);

		if (cancel)
			good = clock == CLOCK_REALTIME && abs;
		for (size_t n = 0; n < ARRAY_SIZE(registering); n++) {
			int op = registering[n];
			/* Number 1 is there to be modified. */
			__u64 ident = op == KEVENT_OP_ADD ? 2 : 1;

			want_result(good ? 1 : -EINVAL,
				    kq_timer_change(op, ident, fflags, NEVER,
						    0, 0, 1));
			if (good && op == KEVENT_OP_ADD)
				want_result(1, kq_change(KEVENT_SOURCE_TIMER,
							 KEVENT_OP_DEL, ident,
							 0));
		}
	}
	EXPECT_EQ(-ENOENT, kq_op(&self->q, KEVENT_SOURCE_TIMER, KEVENT_OP_DEL,
				 2, 0));
	want_none(&self->q, BY_SYSCALL);
}

TEST_F(ctl, refuses_unknown_flags_of_a_timer)
{
	want_result(1, kq_timer_change(KEVENT_OP_ADD, 1, CLOCK_MONOTONIC, NEVER,
				       0, 0, 1));
	for (int bit = 10; bit < 32; bit++) {
		for (size_t n = 0; n < ARRAY_SIZE(registering); n++) {
			int op = registering[n];

			want_refused(-EINVAL,
				     kq_timer_change(op, op == KEVENT_OP_ADD ?
						     2 : 1,
						     CLOCK_REALTIME |
						     KEVENT_TIMER_ABS |
						     1U << bit, NEVER, 0, 0, 1));
		}
	}
}

TEST_F(ctl, takes_any_time)
{
	/* The first is about a century. */
	static const __u64 times[] = {
		3000000000ULL * NSEC_PER_SEC, NEVER - 1, NEVER, NEVER + 1,
		~0ULL,
	};
	static const __u32 flags[] = { 0, KEVENT_TIMER_ABS };

	for (size_t i = 0; i < ARRAY_SIZE(times) * ARRAY_SIZE(flags); i++) {
		__u32 fflags = CLOCK_MONOTONIC | flags[i % ARRAY_SIZE(flags)];
		__u64 time = times[i / ARRAY_SIZE(flags)];

		want_result(1, kq_timer_change(KEVENT_OP_SET, 1, fflags, time,
					       time, 0, 1));
	}
	want_none(&self->q, BY_SYSCALL);
}

TEST_F(ctl, takes_one_of_the_kinds_of_user_events)
{
	static const __u32 bad[] = { 0, 3, 4, 5, 6, 1U << 16, 1U << 31, ~0U };

	want_result(1, kq_user_change(KEVENT_OP_ADD, 1, KEVENT_USER_COUNT, 0,
				      1));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		want_refused(-EINVAL, kq_user_change(KEVENT_OP_ADD, 2, bad[i],
						     0, 1));
		want_refused(-EINVAL, kq_user_change(KEVENT_OP_MOD, 1, bad[i],
						     0, 1));
		want_refused(-EINVAL, kq_user_change(KEVENT_OP_SET, 1, bad[i],
						     0, 1));
	}
	/* The kind can be changed. */
	want_result(1, kq_user_change(KEVENT_OP_MOD, 1, KEVENT_USER_FLAGS, 0,
				      1));
	want_result(1, kq_user_change(KEVENT_OP_SET, 1, KEVENT_USER_COUNT, 0,
				      1));
	want_none(&self->q, BY_SYSCALL);
}

TEST_F(ctl, takes_24_flags_to_begin_with)
{
	struct ukevent change = kq_user_change(KEVENT_OP_ADD, 1,
					       KEVENT_USER_FLAGS, 0, 1);

	change.fflags = KEVENT_NOTE_FFLAGS;
	want_result(1, change);
	for (int bit = 24; bit < 32; bit++) {
		change.fflags = 1U << bit;
		for (size_t n = 0; n < ARRAY_SIZE(registering); n++) {
			change.op = registering[n];
			change.ident = change.op == KEVENT_OP_ADD ? 2 : 1;
			want_refused(-EINVAL, change);
		}
	}
	/* Nothing was triggered. */
	want_none(&self->q, BY_RING);
}

TEST_F(ctl, takes_triggers_of_the_kind_that_the_event_is_of)
{
	ASSERT_EQ(1, kq_add_user(&self->q, 1, KEVENT_USER_COUNT, 0, 1));
	ASSERT_EQ(1, kq_add_user(&self->q, 2, KEVENT_USER_FLAGS, 0, 2));

	/* Nothing is not a number to add. */
	want_refused(-EINVAL, kq_trigger_change(1, 0, 0));
	want_refused(-EINVAL, kq_trigger_change(1, 0, KEVENT_NOTE_TRIGGER));
	for (int bit = 0; bit < 32; bit++)
		want_refused(-EINVAL, kq_trigger_change(1, 1, 1U << bit));

	want_refused(-EINVAL, kq_trigger_change(2, 1, 0));
	want_refused(-EINVAL, kq_trigger_change(2, 1ULL << 63,
						KEVENT_NOTE_TRIGGER));
	for (int bit = 25; bit < 30; bit++)
		want_refused(-EINVAL, kq_trigger_change(2, 0,
							KEVENT_NOTE_TRIGGER |
							1U << bit));
	want_none(&self->q, BY_RING);

	want_result(1, kq_trigger_change(1, 1, 0));
	want_result(1, kq_trigger_change(1, 1ULL << 32, 0));
	want_result(1, kq_trigger_change(1, ~0ULL, 0));
	for (int ctrl = 0; ctrl < 4; ctrl++)
		want_result(1, kq_trigger_change(2, 0, (__u32)ctrl << 30 |
						 KEVENT_NOTE_FFLAGS));
	/* For that, it would have to be said. */
	want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, 1, KEVENT_COUNT_MAX,
		   1);
	want_none(&self->q, BY_RING);
	want_result(1, kq_trigger_change(2, 0, KEVENT_NOTE_TRIGGER));
	want_value(&self->q, BY_RING, KEVENT_SOURCE_USER, 2,
		   KEVENT_NOTE_TRIGGER | KEVENT_NOTE_FFLAGS, 2);
}

TEST_F(ctl, refuses_to_grow_to_a_size_that_is_no_growth)
{
	static const __u64 bad[] = {
		0, 1, SLOTS / 2, SLOTS / 2 + 1, SLOTS, KEVENT_MAX_SLOTS + 1,
		1ULL << 31, 1ULL << 32, 1ULL << 32 | 2 * SLOTS, 1ULL << 63,
		~0ULL,
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, kq_grow(&self->q, bad[i]))
			TH_LOG("%llu slots", bad[i]);
		EXPECT_EQ(SLOTS, self->q.map.ring->slots);
		EXPECT_EQ(SLOTS, self->q.map.ring->rings);
		EXPECT_EQ(0, self->q.map.ring->incompat);
	}
}

TEST_F(ctl, grows_to_a_power_of_two)
{
	static const struct {
		__u64 in;
		__u32 out;
	} tab[] = {
		{ 9, 16 }, { 32, 32 }, { 1000, 1024 },
		{ KEVENT_MAX_SLOTS - 1, KEVENT_MAX_SLOTS },
	};

	for (size_t i = 0; i < ARRAY_SIZE(tab); i++) {
		EXPECT_EQ(1, kq_grow(&self->q, tab[i].in));
		EXPECT_EQ(tab[i].out, self->q.map.ring->slots);
		EXPECT_EQ(tab[i].out, self->q.map.ring->rings & tab[i].out);
		EXPECT_EQ(KEVENT_RING_INCOMPAT_GROWN,
			  self->q.map.ring->incompat);
		EXPECT_EQ(-EINVAL, kq_grow(&self->q, tab[i].out));
	}
}

/*
 * Names
 */

TEST_F(forms, name_registrations_by_source_ident_and_tag)
{
	static const __u64 idents[] = { 0, 1, 1ULL << 32 | 1, ~0ULL };
	static const __u32 tags[] = { 0, 1, 1U << 31, ~0U };
	struct kq q;
	int nr = 0;

	ASSERT_EQ(0, kq_open(&q, 64));
	for (size_t i = 0; i < 3 * ARRAY_SIZE(idents) * ARRAY_SIZE(tags); i++) {
		__u16 source = i % 3 + KEVENT_SOURCE_FD;
		__u64 ident = idents[i / 3 % ARRAY_SIZE(idents)];
		__u32 tag = tags[i / 3 / ARRAY_SIZE(idents)];
		struct ukevent change = mode_change(source, KEVENT_OP_ADD,
						    self->efd, KEVENT_EDGE, i);

		if (source != KEVENT_SOURCE_FD)
			change.ident = ident;
		else if (ident)
			continue;
		change.tag = tag;
		__want_result(_metadata, __LINE__, &q, 1, change);
		__want_result(_metadata, __LINE__, &q, -EEXIST, change);
		nr++;
	}

	/* All of the same file, and one by one those that are triggered */
	signal_eventfd(self->efd);
	for (size_t i = 0; i < ARRAY_SIZE(tags); i++) {
		struct ukevent ev;

		ASSERT_EQ(1, kq_next(&q, i % 2 ? BY_RING : BY_SYSCALL, &ev));
		EXPECT_EQ(KEVENT_SOURCE_FD, ev.source);
		EXPECT_EQ(self->efd, ev.ident);
		EXPECT_EQ(tags[ev.user_data / 3 / ARRAY_SIZE(idents)], ev.tag);
	}
	want_none(&q, BY_RING);
	for (size_t i = 0; i < ARRAY_SIZE(idents) * ARRAY_SIZE(tags); i++) {
		__u64 ident = idents[i % ARRAY_SIZE(idents)];
		__u32 tag = tags[i / ARRAY_SIZE(idents)];
		struct ukevent trigger = kq_trigger_change(ident, i + 1, 0);
		struct ukevent ev;

		trigger.tag = tag;
		__want_result(_metadata, __LINE__, &q, 1, trigger);
		ASSERT_EQ(1, kq_next(&q, i % 2 ? BY_RING : BY_SYSCALL, &ev));
		EXPECT_EQ(KEVENT_SOURCE_USER, ev.source);
		EXPECT_EQ(ident, ev.ident);
		EXPECT_EQ(tag, ev.tag);
		EXPECT_EQ(i + 1, ev.events);
		EXPECT_EQ(3 * i + 2, ev.user_data);
		want_none(&q, BY_RING);
	}

	/* Each deletion takes one of them. */
	for (size_t i = 0; i < 3 * ARRAY_SIZE(idents) * ARRAY_SIZE(tags); i++) {
		__u16 source = i % 3 + KEVENT_SOURCE_FD;
		__u64 ident = idents[i / 3 % ARRAY_SIZE(idents)];
		__u32 tag = tags[i / 3 / ARRAY_SIZE(idents)];

		if (source == KEVENT_SOURCE_FD) {
			if (ident)
				continue;
			ident = self->efd;
		}
		EXPECT_EQ(1, kq_op(&q, source, KEVENT_OP_DEL, ident, tag));
		EXPECT_EQ(-ENOENT, kq_op(&q, source, KEVENT_OP_DEL, ident, tag));
		nr--;
	}
	EXPECT_EQ(0, nr);
	signal_eventfd(self->efd);
	want_none(&q, BY_SYSCALL);
	kq_close(&q);
}

/*
 * kevent_ctl() with several changes
 */

#define BATCH 6

FIXTURE(batch) {
	struct kq q;
	int efd[BATCH];
	struct ukevent add[BATCH];
};

FIXTURE_SETUP(batch)
{
	for (int i = 0; i < BATCH; i++) {
		self->efd[i] = open_eventfd();
		ASSERT_LE(0, self->efd[i]);
		self->add[i] = kq_fd_change(KEVENT_OP_ADD, self->efd[i],
					    EPOLLIN, i);
	}
	kq_setup(_metadata, &self->q, 8);
}

FIXTURE_TEARDOWN(batch)
{
	kq_close(&self->q);
}

/* Those before @nr have to be registered, the others must not be. */
static void want_registered(struct __test_metadata *_metadata, struct kq *q,
			    const int *fds, int nr)
{
	for (int i = 0; i < BATCH; i++) {
		EXPECT_EQ(i < nr ? 1 : -ENOENT, kq_del(q, fds[i]))
			TH_LOG("number %d, expected %d registered", i, nr);
	}
}

TEST_F(batch, is_applied_in_order)
{
	struct ukevent changes[] = {
		self->add[0],
		kq_fd_change(KEVENT_OP_MOD, self->efd[0], EPOLLIN, 10),
		kq_fd_change(KEVENT_OP_DEL, self->efd[0], 0, 0),
		self->add[1],
		self->add[0],
		kq_fd_change(KEVENT_OP_DEL, self->efd[1], 0, 0),
	};

	EXPECT_EQ(6, sys_kevent_ctl(self->q.fd, changes, 6, 0));
	want_registered(_metadata, &self->q, self->efd, 1);
}

TEST_F(batch, ends_at_the_first_failure_and_counts_those_before)
{
	self->add[3].op = 99;
	EXPECT_EQ(3, sys_kevent_ctl(self->q.fd, self->add, BATCH, 0));
	want_registered(_metadata, &self->q, self->efd, 3);
}

TEST_F(batch, gives_the_error_of_the_very_first)
{
	ASSERT_EQ(1, kq_add(&self->q, self->efd[0], EPOLLIN, 0));
	EXPECT_EQ(-EEXIST, sys_kevent_ctl(self->q.fd, self->add, BATCH, 0));
	want_registered(_metadata, &self->q, self->efd, 1);
}

TEST_F(batch, with_results_goes_on_after_failures)
{
	ASSERT_EQ(1, kq_add(&self->q, self->efd[0], EPOLLIN, 0));
	self->add[2].flags = 0;
	self->add[3].ident = INT_MAX;
	self->add[4].op = KEVENT_OP_MOD;
	self->add[5].result = 7;
	EXPECT_EQ(1, sys_kevent_ctl(self->q.fd, self->add, BATCH,
				    KEVENT_CTL_RESULTS));
	EXPECT_EQ(-EEXIST, self->add[0].result);
	EXPECT_EQ(0, self->add[1].result);
	EXPECT_EQ(-EINVAL, self->add[2].result);
	EXPECT_EQ(-EBADF, self->add[3].result);
	EXPECT_EQ(-ENOENT, self->add[4].result);
	EXPECT_EQ(-EINVAL, self->add[5].result);
	want_registered(_metadata, &self->q, self->efd, 2);
}

TEST_F(batch, that_ends_in_a_hole_is_applied_up_to_there)
{
	unsigned char *hole = map_before_hole();
	struct ukevent *changes;

	ASSERT_NE(NULL, hole);
	changes = (struct ukevent *)hole - 3;
	memcpy(changes, self->add, 3 * sizeof(*changes));
	EXPECT_EQ(3, sys_kevent_ctl(self->q.fd, changes, BATCH, 0));
	want_registered(_metadata, &self->q, self->efd, 3);

	EXPECT_EQ(3, sys_kevent_ctl(self->q.fd, changes, BATCH,
				    KEVENT_CTL_RESULTS));
	want_registered(_metadata, &self->q, self->efd, 3);
}

TEST_F(batch, whose_change_lies_half_in_a_hole_is_applied_up_to_there)
{
	unsigned char *hole = map_before_hole();
	unsigned char *changes;

	ASSERT_NE(NULL, hole);
	changes = hole - 2 * sizeof(struct ukevent) - 32;
	memcpy(changes, self->add, 2 * sizeof(struct ukevent) + 32);
	EXPECT_EQ(2, sys_kevent_ctl(self->q.fd, (void *)changes, BATCH, 0));
	want_registered(_metadata, &self->q, self->efd, 2);
}

/* A change of which the program cannot learn must not be made. */
TEST_F(batch, with_results_in_read_only_memory_is_not_applied)
{
	struct ukevent *p = mmap(NULL, 2 * page_size(), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ukevent *changes;

	ASSERT_NE(MAP_FAILED, p);
	memcpy(p, self->add, sizeof(self->add));
	/* The first two can be written to. */
	changes = (void *)((char *)p + page_size());
	changes -= 2;
	memcpy(changes, self->add, sizeof(self->add));
	ASSERT_EQ(0, mprotect((char *)p + page_size(), page_size(), PROT_READ));
	EXPECT_EQ(2, sys_kevent_ctl(self->q.fd, changes, BATCH,
				    KEVENT_CTL_RESULTS));
	want_registered(_metadata, &self->q, self->efd, 2);

	ASSERT_EQ(0, mprotect(p, page_size(), PROT_READ));
	EXPECT_EQ(-EFAULT, sys_kevent_ctl(self->q.fd, p, BATCH,
					  KEVENT_CTL_RESULTS));
	want_registered(_metadata, &self->q, self->efd, 0);

	EXPECT_EQ(BATCH, sys_kevent_ctl(self->q.fd, p, BATCH, 0));
	want_registered(_metadata, &self->q, self->efd, BATCH);
}

/*
 * kevent_getevents()
 */

#define NR_READY 4

/* Four eventfds are readable, and their events are in the ring. */
FIXTURE(collect) {
	struct kq q;
	int efd[NR_READY];
	struct ukevent evs[8];
	struct __kernel_timespec zero;
};

FIXTURE_SETUP(collect)
{
	if (!kq_setup(_metadata, &self->q, 8))
		return;
	for (int i = 0; i < NR_READY; i++) {
		self->efd[i] = open_eventfd();
		ASSERT_LE(0, self->efd[i]);
		signal_eventfd(self->efd[i]);
		ASSERT_EQ(1, kq_add(&self->q, self->efd[i], EPOLLIN, 100 + i));
	}
	memset(self->evs, 0xff, sizeof(self->evs));
}

FIXTURE_TEARDOWN(collect)
{
	kq_close(&self->q);
}

/* The event of number @i, byte by byte */
static void want_exactly(struct __test_metadata *_metadata,
			 const struct ukevent *ev, int fd, int i)
{
	struct ukevent want = {
		.ident = fd,
		.source = KEVENT_SOURCE_FD,
		.flags = KEVENT_EDGE,
		.events = EPOLLIN,
		.user_data = 100 + i,
	};

	EXPECT_EQ(0, memcmp(&want, ev, sizeof(want)))
		TH_LOG("ident %lld source %u op %u flags %#x events %#x user %lld",
		       ev->ident, ev->source, ev->op, ev->flags, ev->events,
		       ev->user_data);
}

/* Those from @first on, and nothing else, must be left. */
static void __want_left(struct __test_metadata *_metadata, int line,
			struct kq *q, const int *fds, int first)
{
	struct ukevent evs[8];

	ASSERT_EQ(NR_READY - first, kq_getevents(q, evs, 0, 8, 0))
		TH_LOG("line %d", line);
	for (int i = first; i < NR_READY; i++)
		want_exactly(_metadata, &evs[i - first], fds[i], i);
}

#define want_left(first) \
	__want_left(_metadata, __LINE__, &self->q, self->efd, first)

TEST_F(collect, fills_in_every_byte_of_an_event_and_nothing_behind)
{
	unsigned char ones[sizeof(struct ukevent)];

	memset(ones, 0xff, sizeof(ones));
	ASSERT_EQ(NR_READY, kq_getevents(&self->q, self->evs, 0, 8, 0));
	for (int i = 0; i < NR_READY; i++)
		want_exactly(_metadata, &self->evs[i], self->efd[i], i);
	for (int i = NR_READY; i < 8; i++) {
		EXPECT_EQ(0, memcmp(ones, &self->evs[i], sizeof(ones)))
			TH_LOG("place %d", i);
	}
}

TEST_F(collect, gives_at_most_what_fits)
{
	unsigned char ones[sizeof(struct ukevent)];

	memset(ones, 0xff, sizeof(ones));
	ASSERT_EQ(3, kq_getevents(&self->q, self->evs, 0, 3, 0));
	EXPECT_EQ(0, memcmp(ones, &self->evs[3], sizeof(ones)));
	want_left(3);
}

TEST_F(collect, needs_the_descriptor_of_a_queue)
{
	struct __kernel_timespec *zero = &self->zero;
	struct ukevent *evs = self->evs;

	EXPECT_EQ(-EBADF, sys_kevent_getevents(-1, evs, 0, 8, zero, NULL));
	EXPECT_EQ(-EBADF, sys_kevent_getevents(lowest_free_fd(), evs, 0, 8,
					       zero, NULL));
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(self->efd[0], evs, 0, 8, zero,
						NULL));
}

TEST_F(collect, refuses_numbers_that_make_no_sense)
{
	struct __kernel_timespec *zero = &self->zero;
	struct ukevent *evs = self->evs;
	int kfd = self->q.fd;

	/* min > max */
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(kfd, evs, 3, 2, zero, NULL));
	/* Room without a buffer, and a buffer without room */
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(kfd, NULL, 0, 1, zero, NULL));
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(kfd, evs, 0, 0, zero, NULL));
	/* More bytes than an int can count */
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(kfd, evs, 0, INT_MAX / 64 + 1,
						zero, NULL));
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(kfd, evs, 0, ~0U, zero, NULL));
	want_left(0);
}

/* There can be more in the end, by level sources or when the ring has grown. */
TEST_F(collect, may_wait_for_more_than_the_ring_holds)
{
	struct __kernel_timespec *zero = &self->zero;

	EXPECT_EQ(NR_READY, sys_kevent_getevents(self->q.fd, NULL, 9, 0, zero,
						 NULL));
	EXPECT_EQ(NR_READY, sys_kevent_getevents(self->q.fd, NULL, ~0U, 0,
						 zero, NULL));
	EXPECT_EQ(NR_READY, sys_kevent_getevents(self->q.fd, self->evs, 9, 16,
						 zero, NULL));
}

TEST_F(collect, takes_the_largest_numbers_that_make_sense)
{
	EXPECT_EQ(NR_READY, sys_kevent_getevents(self->q.fd, self->evs, 8,
						 INT_MAX / 64, &self->zero,
						 NULL));
	EXPECT_EQ(0, sys_kevent_getevents(self->q.fd, NULL, 8, 0, &self->zero,
					  NULL));
}

TEST_F(collect, refuses_a_bad_timeout)
{
	static const struct __kernel_timespec bad[] = {
		{ .tv_sec = -1 },
		{ .tv_nsec = -1 },
		{ .tv_nsec = NSEC_PER_SEC },
		{ .tv_sec = 1, .tv_nsec = -1 },
		{ .tv_nsec = 1LL << 32 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		/* The upper half is padding where a long is shorter. */
		if (bad[i].tv_nsec >> 32 > 0 && sizeof(long) < sizeof(__s64))
			continue;
		EXPECT_EQ(-EINVAL, sys_kevent_getevents(self->q.fd, self->evs,
							0, 8, &bad[i], NULL))
			TH_LOG("number %zu", i);
		EXPECT_EQ(-EINVAL, sys_kevent_getevents(self->q.fd, NULL, 1, 0,
							&bad[i], NULL))
			TH_LOG("number %zu", i);
	}
	EXPECT_EQ(-EFAULT, sys_kevent_getevents(self->q.fd, self->evs, 0, 8,
						(void *)map_before_hole(),
						NULL));
	want_left(0);
}

/* Nor does it overflow */
TEST_F(collect, takes_the_largest_timeout)
{
	struct __kernel_timespec ts = {
		.tv_sec = LLONG_MAX,
		.tv_nsec = NSEC_PER_SEC - 1,
	};

	EXPECT_EQ(NR_READY, sys_kevent_getevents(self->q.fd, self->evs, 1, 8,
						 &ts, NULL));
}

TEST_F(collect, loses_nothing_to_a_buffer_that_is_not_there)
{
	unsigned char *hole = map_before_hole();

	ASSERT_NE(NULL, hole);
	EXPECT_EQ(-EFAULT, sys_kevent_getevents(self->q.fd, (void *)hole, 0, 8,
						&self->zero, NULL));
	EXPECT_EQ(-EFAULT, sys_kevent_getevents(self->q.fd, (void *)hole, 1, 1,
						&self->zero, NULL));
	want_left(0);
}

TEST_F(collect, loses_nothing_to_a_buffer_that_cannot_be_written)
{
	void *p = mmap(NULL, page_size(), PROT_READ,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, p);
	EXPECT_EQ(-EFAULT, sys_kevent_getevents(self->q.fd, p, 0, 8,
						&self->zero, NULL));
	want_left(0);
}

TEST_F(collect, gives_what_fits_before_a_hole)
{
	unsigned char *hole = map_before_hole();
	struct ukevent *evs;

	ASSERT_NE(NULL, hole);
	evs = (struct ukevent *)hole - 2;
	ASSERT_EQ(2, sys_kevent_getevents(self->q.fd, evs, 0, 8, &self->zero,
					  NULL));
	want_exactly(_metadata, &evs[0], self->efd[0], 0);
	want_exactly(_metadata, &evs[1], self->efd[1], 1);
	want_left(2);
}

TEST_F(collect, does_not_claim_an_event_that_lies_half_in_a_hole)
{
	unsigned char *hole = map_before_hole();
	unsigned char *evs;

	ASSERT_NE(NULL, hole);
	evs = hole - sizeof(struct ukevent) - 32;
	ASSERT_EQ(1, sys_kevent_getevents(self->q.fd, (void *)evs, 0, 8,
					  &self->zero, NULL));
	want_left(1);
}

/*
 * The options of kevent_getevents()
 */

/* One eventfd is registered and readable, another is what a change is about. */
FIXTURE(opts) {
	struct kq q;
	int efd;
	int other;
	struct ukevent change;
	struct {
		struct kevent_getopts opts;
		unsigned char more[64];
	} big;
	struct kevent_getopts *opts;
};

FIXTURE_SETUP(opts)
{
	self->efd = open_eventfd();
	ASSERT_LE(0, self->efd);
	self->other = open_eventfd();
	ASSERT_LE(0, self->other);
	self->change = kq_fd_change(KEVENT_OP_ADD, self->other, EPOLLIN, 2);
	self->opts = &self->big.opts;
	*self->opts = kq_opts(0);
	if (!kq_setup(_metadata, &self->q, SLOTS))
		return;
	signal_eventfd(self->efd);
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
}

FIXTURE_TEARDOWN(opts)
{
	kq_close(&self->q);
}

/* The event is collected. */
static void __want_taken(struct __test_metadata *_metadata, int line,
			 const struct kq *q, int efd,
			 const struct kevent_getopts *opts)
{
	struct __kernel_timespec zero = { };
	struct ukevent ev;

	EXPECT_EQ(1, sys_kevent_getevents(q->fd, &ev, 1, 1, &zero, opts))
		TH_LOG("line %d", line);
	/* Have it there again. */
	EXPECT_EQ(1, kq_mod(q, efd, EPOLLIN, 1));
}

#define want_taken() \
	__want_taken(_metadata, __LINE__, &self->q, self->efd, self->opts)

/* Nothing is collected, and no change is applied. */
static void __want_not_taken(struct __test_metadata *_metadata, int line,
			     const struct kq *q, int other,
			     const struct kevent_getopts *opts,
			     const struct __kernel_timespec *timeout, int err)
{
	struct ukevent ev;

	EXPECT_EQ(err, sys_kevent_getevents(q->fd, &ev, 1, 1, timeout, opts))
		TH_LOG("line %d", line);
	EXPECT_EQ(-ENOENT, kq_del(q, other))
		TH_LOG("line %d: the change was applied", line);
	EXPECT_EQ(1, kq_getevents(q, NULL, 1, 0, 0))
		TH_LOG("line %d: the event is gone", line);
}

#define want_not_taken_until(timeout, err) \
	__want_not_taken(_metadata, __LINE__, &self->q, self->other, \
			 self->opts, timeout, err)
#define want_not_taken(err) do {				\
	struct __kernel_timespec zero = { };			\
	want_not_taken_until(&zero, err);			\
} while (0)

static void give_change(struct kevent_getopts *opts,
			const struct ukevent *change)
{
	opts->changes = (uintptr_t)change;
	opts->nr_changes = 1;
}

TEST_F(opts, are_taken_if_they_say_nothing)
{
	want_taken();
}

TEST_F(opts, refuse_a_size_below_the_first_version)
{
	static const __u32 bad[] = {
		0, 1, 4, KEVENT_GETOPTS_SIZE_VER0 - 8,
		KEVENT_GETOPTS_SIZE_VER0 - 1,
	};

	give_change(self->opts, &self->change);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		self->opts->size = bad[i];
		want_not_taken(-EINVAL);
	}
}

TEST_F(opts, take_a_larger_size_if_the_rest_is_zero)
{
	self->opts->size = sizeof(self->big);
	want_taken();
	self->opts->size = sizeof(self->big) - 1;
	want_taken();
}

TEST_F(opts, refuse_a_larger_size_if_the_rest_is_not_zero)
{
	give_change(self->opts, &self->change);
	self->opts->size = sizeof(self->big);
	for (size_t i = 0; i < sizeof(self->big.more); i += 21) {
		self->big.more[i] = 1;
		want_not_taken(-E2BIG);
		self->big.more[i] = 0;
	}
}

TEST_F(opts, take_a_page_and_refuse_more)
{
	struct kevent_getopts *large = calloc(2, page_size());

	ASSERT_NE(NULL, large);
	self->opts = large;
	self->opts->size = page_size();
	want_taken();
	give_change(self->opts, &self->change);
	self->opts->size = page_size() + 1;
	want_not_taken(-E2BIG);
	self->opts->size = ~0U;
	want_not_taken(-E2BIG);
}

TEST_F(opts, refuse_a_bad_pointer)
{
	unsigned char *hole = map_before_hole();
	void *bad[] = { (void *)1, hole, hole - 8 };

	ASSERT_NE(NULL, hole);
	*(__u32 *)(hole - 8) = KEVENT_GETOPTS_SIZE_VER0;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		self->opts = bad[i];
		want_not_taken(-EFAULT);
	}
}

TEST_F(opts, refuse_unknown_flags)
{
	give_change(self->opts, &self->change);
	for (int bit = 1; bit < 32; bit++) {
		self->opts->flags = 1U << bit;
		want_not_taken(-EINVAL);
	}
}

TEST_F(opts, refuse_reserved_fields_that_are_not_zero)
{
	give_change(self->opts, &self->change);
	for (size_t i = 0; i < ARRAY_SIZE(self->opts->resv); i++) {
		self->opts->resv[i] = 1;
		want_not_taken(-EINVAL);
		self->opts->resv[i] = 1ULL << 63;
		want_not_taken(-EINVAL);
		self->opts->resv[i] = 0;
	}
}

TEST_F(opts, take_a_clock_only_with_a_deadline)
{
	static const __u32 clocks[] = { 1, CLOCK_BOOTTIME, CLOCK_TAI, ~0U };

	give_change(self->opts, &self->change);
	for (size_t i = 0; i < ARRAY_SIZE(clocks); i++) {
		self->opts->clock = clocks[i];
		want_not_taken(-EINVAL);
	}
}

TEST_F(opts, take_a_deadline_of_four_clocks)
{
	static const __u32 good[] = {
		CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI,
	};
	static const __u32 bad[] = {
		2, 3, 4, 5, 6, 8, 9, 10, 12, 13, 16, 255, 256, 257, 1U << 31,
		~0U,
	};

	self->opts->flags = KEVENT_GET_ABSTIME;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		self->opts->clock = good[i];
		want_taken();
	}
	give_change(self->opts, &self->change);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		self->opts->clock = bad[i];
		want_not_taken(-EINVAL);
	}
}

TEST_F(opts, take_no_deadline_without_a_time)
{
	give_change(self->opts, &self->change);
	self->opts->flags = KEVENT_GET_ABSTIME;
	want_not_taken_until(NULL, -EINVAL);
}

TEST_F(opts, refuse_a_deadline_that_is_no_time)
{
	static const struct __kernel_timespec bad[] = {
		{ .tv_sec = -1 },
		{ .tv_nsec = -1 },
		{ .tv_nsec = NSEC_PER_SEC },
	};

	give_change(self->opts, &self->change);
	self->opts->flags = KEVENT_GET_ABSTIME;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		want_not_taken_until(&bad[i], -EINVAL);
}

TEST_F(opts, take_a_signal_mask_of_the_kernels_size)
{
	static const __u32 bad[] = { 0, 1, 4, 7, 9, 12, 16, 128, ~0U };
	__u64 mask = 0;

	self->opts->sigmask = (uintptr_t)&mask;
	self->opts->sigsetsize = 8;
	want_taken();
	give_change(self->opts, &self->change);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		self->opts->sigsetsize = bad[i];
		want_not_taken(-EINVAL);
	}
	self->opts->sigmask = 0;
	self->opts->sigsetsize = 8;
	want_not_taken(-EINVAL);
}

TEST_F(opts, refuse_a_signal_mask_that_is_not_there)
{
	unsigned char *hole = map_before_hole();

	ASSERT_NE(NULL, hole);
	self->opts->sigsetsize = 8;
	self->opts->sigmask = 1;
	want_not_taken(-EFAULT);
	self->opts->sigmask = (uintptr_t)hole;
	want_not_taken(-EFAULT);
	self->opts->sigmask = (uintptr_t)hole - 4;
	want_not_taken(-EFAULT);
}

TEST_F(opts, take_any_least_wait)
{
	static const __u64 waits[] = { 1, NEVER, NEVER + 1, ~0ULL };

	for (size_t i = 0; i < ARRAY_SIZE(waits); i++) {
		self->opts->min_wait = waits[i];
		want_taken();
		/* There is nothing to wait for. */
		EXPECT_EQ(0, sys_kevent_getevents(self->q.fd, NULL, 0, 0, NULL,
						  self->opts));
	}
}

TEST_F(opts, take_changes)
{
	give_change(self->opts, &self->change);
	want_taken();
	EXPECT_EQ(1, kq_del(&self->q, self->other));
	self->opts->change_flags = KEVENT_CTL_RESULTS;
	want_taken();
	EXPECT_EQ(1, kq_del(&self->q, self->other));
}

TEST_F(opts, refuse_what_is_of_changes_without_changes)
{
	for (int bit = 0; bit < 32; bit++) {
		self->opts->change_flags = 1U << bit;
		want_not_taken(-EINVAL);
	}
	self->opts->change_flags = 0;
	self->opts->changes = (uintptr_t)&self->change;
	want_not_taken(-EINVAL);
}

TEST_F(opts, refuse_unknown_flags_of_changes)
{
	give_change(self->opts, &self->change);
	for (int bit = 1; bit < 32; bit++) {
		self->opts->change_flags = 1U << bit;
		want_not_taken(-EINVAL);
	}
}

TEST_F(opts, refuse_changes_that_are_not_there)
{
	unsigned char *hole = map_before_hole();

	ASSERT_NE(NULL, hole);
	self->opts->nr_changes = 1;
	want_not_taken(-EFAULT);
	self->opts->changes = (uintptr_t)hole;
	want_not_taken(-EFAULT);
	self->opts->change_flags = KEVENT_CTL_RESULTS;
	want_not_taken(-EFAULT);
}

TEST_F(opts, refuse_more_changes_than_can_be_counted)
{
	give_change(self->opts, &self->change);
	self->opts->nr_changes = INT_MAX / 64 + 1;
	want_not_taken(-EINVAL);
	self->opts->nr_changes = UINT_MAX;
	want_not_taken(-EINVAL);
}

/* What is wrong with the call itself is told of before anything is done. */
TEST_F(opts, apply_no_changes_of_a_call_that_makes_no_sense)
{
	static const struct __kernel_timespec bad = { .tv_nsec = -1 };
	struct ukevent evs[2];

	give_change(self->opts, &self->change);
	want_not_taken_until(&bad, -EINVAL);
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(self->q.fd, evs, 2, 1, NULL,
						self->opts));
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(self->q.fd, NULL, 0, 1, NULL,
						self->opts));
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(self->q.fd, evs, 0, 0, NULL,
						self->opts));
	EXPECT_EQ(-EFAULT, sys_kevent_getevents(self->q.fd, evs, 0, 1,
						(void *)map_before_hole(),
						self->opts));
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->other));
}

TEST_HARNESS_MAIN
