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
ASSERT_OFFSET(kevent_params, resv, 24);
static_assert(sizeof(struct kevent_params) == 48, "kevent_params");

ASSERT_OFFSET(kevent_ring, compat, 0);
ASSERT_OFFSET(kevent_ring, incompat, 4);
ASSERT_OFFSET(kevent_ring, slots, 8);
ASSERT_OFFSET(kevent_ring, slot_size, 12);
ASSERT_OFFSET(kevent_ring, flags, 16);
ASSERT_OFFSET(kevent_ring, resv, 20);
static_assert(sizeof(struct kevent_ring) == 64, "kevent_ring");

ASSERT_OFFSET(kevent_slot, word, 0);
ASSERT_OFFSET(kevent_slot, user_data, 8);
ASSERT_OFFSET(kevent_slot, ident, 16);
ASSERT_OFFSET(kevent_slot, source, 24);
ASSERT_OFFSET(kevent_slot, flags, 26);
ASSERT_OFFSET(kevent_slot, data, 28);
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
ASSERT_OFFSET(ukevent, resv32, 44);
ASSERT_OFFSET(ukevent, resv, 48);
static_assert(sizeof(struct ukevent) == 64, "ukevent");

static_assert(KEVENT_PARAMS_SIZE_VER0 == 48, "KEVENT_PARAMS_SIZE_VER0");
static_assert(KEVENT_MAX_SLOTS == 65536, "KEVENT_MAX_SLOTS");
static_assert(KEVENT_OFF_HEADER == 0, "KEVENT_OFF_HEADER");
static_assert(KEVENT_OFF_SLOTS == 0x10000000, "KEVENT_OFF_SLOTS");
static_assert(KEVENT_RING_OVERFLOW == 1, "KEVENT_RING_OVERFLOW");
static_assert(KEVENT_SOURCE_FD == 1, "KEVENT_SOURCE_FD");
static_assert(KEVENT_FD_HINT == 0x80000000, "KEVENT_FD_HINT");
static_assert(KEVENT_OP_ADD == 1, "KEVENT_OP_ADD");
static_assert(KEVENT_OP_MOD == 2, "KEVENT_OP_MOD");
static_assert(KEVENT_OP_DEL == 3, "KEVENT_OP_DEL");
static_assert(KEVENT_EDGE == 1, "KEVENT_EDGE");
static_assert(KEVENT_CTL_RESULTS == 1, "KEVENT_CTL_RESULTS");
static_assert(KEVENT_WORD_READY == 1, "KEVENT_WORD_READY");

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
	EXPECT_EQ(0, p->resv[0] | p->resv[1] | p->resv[2]);
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

TEST_F(init, refuses_unknown_flags)
{
	for (int bit = 0; bit < 32; bit++) {
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
	kq_setup(_metadata, &self->q, 8);
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
	static const __u16 bad[] = { 0, 2, 0x101, 0xffff };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct ukevent change = self->add;

		change.source = bad[i];
		want_refused(-EINVAL, change);
	}
}

TEST_F(ctl, refuses_an_unknown_operation)
{
	static const __u16 bad[] = { 0, 4, 0x101, 0xffff };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct ukevent change = self->add;

		change.op = bad[i];
		want_refused(-EINVAL, change);
	}
}

TEST_F(ctl, refuses_unknown_mode_flags)
{
	struct ukevent mod = kq_fd_change(KEVENT_OP_MOD, self->efd, EPOLLIN, 1);
	struct ukevent add = self->add;

	for (int bit = 1; bit < 32; bit++) {
		add.flags = KEVENT_EDGE | 1U << bit;
		want_refused(-EINVAL, add);
	}
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	for (int bit = 1; bit < 32; bit++) {
		mod.flags = KEVENT_EDGE | 1U << bit;
		want_refused(-EINVAL, mod);
	}
}

/* So that a level mode can come later without a flag of its own */
TEST_F(ctl, insists_on_the_edge_flag)
{
	struct ukevent mod = kq_fd_change(KEVENT_OP_MOD, self->efd, EPOLLIN, 1);

	self->add.flags = 0;
	want_refused(-EINVAL, self->add);
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	mod.flags = 0;
	want_refused(-EINVAL, mod);
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
		want_refused(-EINVAL, mod);
	}
}

TEST_F(ctl, refuses_fields_that_have_to_be_zero)
{
	/* Not all of the operations would find the registration. */
	for (unsigned int op = KEVENT_OP_ADD; op <= KEVENT_OP_DEL; op++) {
		struct ukevent good = kq_fd_change(op, self->efd, EPOLLIN, 1);
		struct ukevent bad;

		bad = good;
		bad.result = 1;
		want_refused(-EINVAL, bad);
		bad = good;
		bad.result = -EINVAL;
		want_refused(-EINVAL, bad);
		bad = good;
		bad.data = 1ULL << 63;
		want_refused(-EINVAL, bad);
		bad = good;
		bad.fflags = 1;
		want_refused(-EINVAL, bad);
		bad = good;
		bad.resv32 = 1U << 31;
		want_refused(-EINVAL, bad);
		bad = good;
		bad.resv[0] = 1;
		want_refused(-EINVAL, bad);
		bad = good;
		bad.resv[1] = 1ULL << 63;
		want_refused(-EINVAL, bad);
	}
	EXPECT_EQ(-ENOENT, kq_del(&self->q, self->efd));
}

TEST_F(ctl, refuses_a_deletion_that_says_more_than_what)
{
	struct ukevent del = kq_fd_change(KEVENT_OP_DEL, self->efd, 0, 0);
	struct ukevent bad;

	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	bad = del;
	bad.flags = KEVENT_EDGE;
	want_refused(-EINVAL, bad);
	bad = del;
	bad.events = EPOLLIN;
	want_refused(-EINVAL, bad);
	bad = del;
	bad.user_data = 1;
	want_refused(-EINVAL, bad);

	EXPECT_EQ(1, kq_del(&self->q, self->efd));
}

TEST_F(ctl, refuses_what_is_no_open_descriptor)
{
	int opath = open("/dev/null", O_PATH | O_CLOEXEC);
	const __u64 bad[] = {
		lowest_free_fd(), opath, INT_MAX, 1ULL << 31, ~0U, ~0ULL,
		/* The descriptor is good if only 32 bits are looked at. */
		1ULL << 32 | self->efd, 1ULL << 63 | self->efd,
	};

	ASSERT_LE(0, opath);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		for (int op = KEVENT_OP_ADD; op <= KEVENT_OP_DEL; op++) {
			struct ukevent change = kq_fd_change(op, 0, EPOLLIN, 1);

			change.ident = bad[i];
			want_refused(-EBADF, change);
		}
	}
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

TEST_F(ctl, needs_a_registration_to_modify_or_delete)
{
	want_refused(-ENOENT, kq_fd_change(KEVENT_OP_MOD, self->efd, EPOLLIN, 1));
	want_refused(-ENOENT, kq_fd_change(KEVENT_OP_DEL, self->efd, 0, 0));
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	ASSERT_EQ(1, kq_del(&self->q, self->efd));
	want_refused(-ENOENT, kq_fd_change(KEVENT_OP_MOD, self->efd, EPOLLIN, 1));
	want_refused(-ENOENT, kq_fd_change(KEVENT_OP_DEL, self->efd, 0, 0));
}

TEST_F(ctl, does_not_write_to_changes_without_being_asked)
{
	struct ukevent change = self->add;

	EXPECT_EQ(1, sys_kevent_ctl(self->q.fd, &change, 1, 0));
	EXPECT_EQ(0, memcmp(&change, &self->add, sizeof(change)));
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

TEST_F(collect, refuses_options)
{
	__u64 opts[16] = { };

	EXPECT_EQ(-EINVAL, sys_kevent_getevents(self->q.fd, self->evs, 0, 8,
						&self->zero, (void *)opts));
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(self->q.fd, self->evs, 0, 8,
						&self->zero, (void *)1));
	want_left(0);
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
	/* More than there can ever be at once */
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(kfd, evs, 9, 16, zero, NULL));
	EXPECT_EQ(-EINVAL, sys_kevent_getevents(kfd, NULL, 9, 0, zero, NULL));
	want_left(0);
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

TEST_HARNESS_MAIN
