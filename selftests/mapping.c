// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: how the ring can be mapped, what holds it, and what a program can do
 * to it.
 */
#include "kevent_util.h"

#define SLOTS 1024

FIXTURE(mapping) {
	struct kq q;
	int efd;
	size_t page;
};

FIXTURE_SETUP(mapping)
{
	self->page = sysconf(_SC_PAGESIZE);
	self->efd = open_eventfd();
	ASSERT_LE(0, self->efd);
	kq_setup(_metadata, &self->q, SLOTS);
}

FIXTURE_TEARDOWN(mapping)
{
	kq_close(&self->q);
}

/* Zero if it could be mapped (and now is not), or a negated error number */
static int try_mmap(const struct kq *q, __u64 offset, size_t size, int prot,
		    int flags)
{
	void *p = mmap(NULL, size, prot, flags, q->fd, offset);

	if (p == MAP_FAILED)
		return -errno;
	munmap(p, size);
	return 0;
}

#define try_header(size, prot, flags) \
	try_mmap(&self->q, KEVENT_OFF_HEADER, size, prot, flags)
#define try_slots(size, prot, flags) \
	try_mmap(&self->q, KEVENT_OFF_SLOTS(SLOTS), size, prot, flags)

#define want_fd_event(q, udata) \
	want_event(q, BY_RING, self->efd, EPOLLIN, EPOLLIN, udata)

TEST_F(mapping, of_the_header_cannot_be_writable)
{
	const size_t size = self->q.params.header_size;

	EXPECT_EQ(-EPERM, try_header(size, PROT_READ | PROT_WRITE, MAP_SHARED));
	EXPECT_EQ(-EPERM, try_header(size, PROT_WRITE, MAP_SHARED));
	EXPECT_EQ(-1, mprotect((void *)self->q.map.ring, size,
			       PROT_READ | PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
}

TEST_F(mapping, of_the_slots_can_be_read_only)
{
	const size_t size = self->q.params.slots_size;
	struct kevent_slot *slot;

	slot = mmap(NULL, size, PROT_READ, MAP_SHARED, self->q.fd,
		    KEVENT_OFF_SLOTS(SLOTS));
	ASSERT_NE(MAP_FAILED, slot);
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	signal_eventfd(self->efd);
	EXPECT_EQ(KEVENT_WORD_READY,
		  kevent_slot_word(slot) & KEVENT_WORD_READY);
	EXPECT_EQ(0, munmap(slot, size));
}

TEST_F(mapping, cannot_be_executable)
{
	const size_t header = self->q.params.header_size;
	const size_t slots = self->q.params.slots_size;

	EXPECT_EQ(-EPERM, try_header(header, PROT_READ | PROT_EXEC, MAP_SHARED));
	EXPECT_EQ(-EPERM, try_slots(slots, PROT_READ | PROT_EXEC, MAP_SHARED));
	EXPECT_EQ(-1, mprotect((void *)self->q.map.ring, header,
			       PROT_READ | PROT_EXEC));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(-1, mprotect(self->q.map.slots, slots,
			       PROT_READ | PROT_EXEC));
	EXPECT_EQ(EACCES, errno);
}

TEST_F(mapping, cannot_be_private)
{
	const size_t header = self->q.params.header_size;
	const size_t slots = self->q.params.slots_size;

	EXPECT_EQ(-EINVAL, try_header(header, PROT_READ, MAP_PRIVATE));
	EXPECT_EQ(-EINVAL, try_slots(slots, PROT_READ, MAP_PRIVATE));
	EXPECT_EQ(-EINVAL, try_slots(slots, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE));
}

TEST_F(mapping, needs_an_offset_that_is_known)
{
	const __u64 bad[] = {
		self->q.params.header_size,
		KEVENT_OFF_SLOTS(SLOTS) - self->page,
		KEVENT_OFF_SLOTS(SLOTS) + self->page,
		KEVENT_OFF_SLOTS(SLOTS) + self->q.params.slots_size,
		/* A ring of other sizes has these. */
		KEVENT_OFF_SLOTS(1),
		KEVENT_OFF_SLOTS(SLOTS / 2),
		KEVENT_OFF_SLOTS(2 * SLOTS),
		KEVENT_OFF_SLOTS(KEVENT_MAX_SLOTS),
		/* And these, none. */
		KEVENT_OFF_SLOTS(SLOTS + 1),
		KEVENT_OFF_SLOTS(3 * SLOTS),
		KEVENT_OFF_SLOTS(2 * KEVENT_MAX_SLOTS),
		/* It is good if only 32 bits are looked at. */
		(1ULL << 32) + KEVENT_OFF_SLOTS(SLOTS),
		(1ULL << 43) + KEVENT_OFF_SLOTS(SLOTS),
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, try_mmap(&self->q, bad[i], self->page,
					    PROT_READ, MAP_SHARED))
			TH_LOG("offset %#llx", bad[i]);
	}
}

TEST_F(mapping, cannot_be_larger_than_the_ring)
{
	const size_t header = self->q.params.header_size;
	const size_t slots = self->q.params.slots_size;

	EXPECT_EQ(-EINVAL, try_header(header + self->page, PROT_READ,
				      MAP_SHARED));
	EXPECT_EQ(-EINVAL, try_slots(slots + self->page, PROT_READ,
				     MAP_SHARED));
	EXPECT_EQ(-EINVAL, try_slots(64 * slots, PROT_READ | PROT_WRITE,
				     MAP_SHARED));
}

TEST_F(mapping, can_be_smaller_than_the_ring)
{
	struct kevent_slot *slot;

	EXPECT_EQ(0, try_header(self->page, PROT_READ, MAP_SHARED));
	slot = mmap(NULL, self->page, PROT_READ | PROT_WRITE, MAP_SHARED,
		    self->q.fd, KEVENT_OFF_SLOTS(SLOTS));
	ASSERT_NE(MAP_FAILED, slot);
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	signal_eventfd(self->efd);
	EXPECT_EQ(kevent_slot_word(kevent_ring_slot(&self->q.map, 0)),
		  kevent_slot_word(slot));
	EXPECT_EQ(1, slot->user_data);
	EXPECT_EQ(0, munmap(slot, self->page));
}

TEST_F(mapping, can_be_made_twice)
{
	struct kq other = self->q;

	ASSERT_EQ(0, kq_map(&other));
	ASSERT_NE(self->q.map.slots, other.map.slots);
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	for (int i = 0; i < 10; i++) {
		signal_eventfd(self->efd);
		want_fd_event(i % 2 ? &self->q : &other, 1);
		want_none(&self->q, BY_RING);
		want_none(&other, BY_RING);
	}
	kq_unmap(&other);
	signal_eventfd(self->efd);
	want_fd_event(&self->q, 1);
}

TEST_F(mapping, keeps_the_queue_alive_when_it_is_closed)
{
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	ASSERT_EQ(0, close(self->q.fd));
	self->q.fd = -1;
	for (int i = 0; i < 10; i++) {
		signal_eventfd(self->efd);
		want_fd_event(&self->q, 1);
	}
	signal_eventfd(self->efd);
	kq_unmap(&self->q);
	/* Nobody is there any more. */
	signal_eventfd(self->efd);
	EXPECT_EQ(12, drain_eventfd(self->efd));
}

TEST_F(mapping, of_the_slots_alone_keeps_the_queue_alive)
{
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	ASSERT_EQ(0, munmap((void *)self->q.map.ring,
			    self->q.params.header_size));
	self->q.map.ring = NULL;
	ASSERT_EQ(0, close(self->q.fd));
	self->q.fd = -1;
	signal_eventfd(self->efd);
	want_fd_event(&self->q, 1);
}

TEST_F(mapping, is_not_needed_by_who_uses_the_calls)
{
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	kq_unmap(&self->q);
	for (int i = 0; i < 10; i++) {
		signal_eventfd(self->efd);
		want_event(&self->q, BY_SYSCALL, self->efd, EPOLLIN, EPOLLIN, 1);
	}
	ASSERT_EQ(0, kq_map(&self->q));
	signal_eventfd(self->efd);
	want_fd_event(&self->q, 1);
}

TEST_F(mapping, is_shared_with_a_child)
{
	int s[2];
	pid_t pid;

	ASSERT_EQ(0, sync_open(s));
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		struct ukevent ev;
		int nr;

		close(s[0]);
		sync_wait(s[1]);
		nr = kq_collect(&self->q, BY_RING, &ev, 1);
		sync_post(s[1]);
		_exit(nr == 1 && ev.user_data == 1 ? 0 : 1);
	}
	close(s[1]);
	signal_eventfd(self->efd);
	sync_post(s[0]);
	EXPECT_TRUE(sync_wait(s[0]));
	want_none(&self->q, BY_RING);
	EXPECT_EQ(1, self->q.map.cursor);
	EXPECT_EQ(0, reap(pid));

	signal_eventfd(self->efd);
	want_fd_event(&self->q, 1);
}

TEST_F(mapping, of_a_child_keeps_the_queue_alive)
{
	int s[2];
	pid_t pid;

	ASSERT_EQ(0, sync_open(s));
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		struct ukevent ev;
		int nr;

		close(s[0]);
		close(self->q.fd);
		sync_wait(s[1]);
		nr = kq_collect(&self->q, BY_RING, &ev, 1);
		_exit(nr == 1 && ev.user_data == 1 ? 0 : 1);
	}
	close(s[1]);
	kq_close(&self->q);
	signal_eventfd(self->efd);
	sync_post(s[0]);
	EXPECT_EQ(0, reap(pid));
	/* Nobody is there any more. */
	signal_eventfd(self->efd);
}

TEST_F(mapping, cannot_grow)
{
	const size_t header = self->q.params.header_size;
	const size_t slots = self->q.params.slots_size;

	EXPECT_EQ(MAP_FAILED, mremap((void *)self->q.map.ring, header,
				     header + self->page, MREMAP_MAYMOVE));
	EXPECT_EQ(MAP_FAILED, mremap(self->q.map.slots, slots, 2 * slots,
				     MREMAP_MAYMOVE));
}

/*
 * The ring itself grows in another way: the larger set of slots is mapped
 * beside the one before.
 */

TEST_F(mapping, of_slots_that_the_ring_grew_to)
{
	const __u64 large = 4 * SLOTS;
	const size_t size = kevent_set_size(large, self->q.map.slot_size);

	EXPECT_EQ(-EINVAL, try_mmap(&self->q, KEVENT_OFF_SLOTS(large), size,
				    PROT_READ, MAP_SHARED));
	/* With an event, so that there is a reason to keep the old ones. */
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	signal_eventfd(self->efd);
	ASSERT_EQ(1, kq_grow(&self->q, large));

	EXPECT_EQ(0, try_slots(self->q.params.slots_size, PROT_READ,
			       MAP_SHARED));
	EXPECT_EQ(0, try_mmap(&self->q, KEVENT_OFF_SLOTS(large), size,
			      PROT_READ | PROT_WRITE, MAP_SHARED));
	EXPECT_EQ(0, try_mmap(&self->q, KEVENT_OFF_SLOTS(large), self->page,
			      PROT_READ, MAP_SHARED));
	EXPECT_EQ(-EINVAL, try_mmap(&self->q, KEVENT_OFF_SLOTS(large),
				    size + self->page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(-EINVAL, try_slots(self->q.params.slots_size + self->page,
				     PROT_READ, MAP_SHARED));
	EXPECT_EQ(-EINVAL, try_mmap(&self->q, KEVENT_OFF_SLOTS(2 * SLOTS),
				    self->page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(-EINVAL, try_mmap(&self->q, KEVENT_OFF_SLOTS(large), size,
				    PROT_READ, MAP_PRIVATE));
	EXPECT_EQ(-EPERM, try_mmap(&self->q, KEVENT_OFF_SLOTS(large), size,
				   PROT_READ | PROT_EXEC, MAP_SHARED));
}

TEST_F(mapping, of_grown_slots_is_made_by_who_finds_the_old_ones_empty)
{
	struct kq other;

	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	signal_eventfd(self->efd);
	ASSERT_EQ(1, kq_grow(&self->q, 2 * SLOTS));
	ASSERT_EQ(1, kq_grow(&self->q, 8 * SLOTS));

	/* Who comes now begins where there is something. */
	ASSERT_EQ(0, kq_attach(&other, &self->q));
	EXPECT_EQ(SLOTS, other.map.nr_slots);
	want_fd_event(&self->q, 1);
	for (int i = 0; i < 10; i++) {
		signal_eventfd(self->efd);
		want_fd_event(i % 2 ? &self->q : &other, 1);
		want_none(&self->q, BY_RING);
		want_none(&other, BY_RING);
	}
	EXPECT_EQ(8 * SLOTS, self->q.map.nr_slots);
	EXPECT_EQ(8 * SLOTS, other.map.nr_slots);
	/* The positions are counted from zero again. */
	EXPECT_EQ(10, self->q.map.cursor);
	kq_unmap(&other);
}

/* They go when the last event in them is claimed and the kernel comes by. */
TEST_F(mapping, of_slots_that_are_gone_is_refused)
{
	struct kq late;
	struct ukevent ev;

	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	signal_eventfd(self->efd);
	ASSERT_EQ(1, kq_grow(&self->q, 2 * SLOTS));
	EXPECT_EQ(3 * SLOTS, self->q.map.ring->rings);
	want_fd_event(&self->q, 1);
	for (int i = 0; i < 100; i++) {
		ASSERT_EQ(0, kq_getevents(&self->q, &ev, 0, 1, 0));
		ASSERT_EQ(1, kq_mod(&self->q, self->efd, EPOLLPRI, 1));
	}
	EXPECT_EQ(2 * SLOTS, self->q.map.ring->rings);
	EXPECT_EQ(-EINVAL, try_slots(self->q.params.slots_size, PROT_READ,
				     MAP_SHARED));

	/* What is mapped stays, for who has not looked at the header yet. */
	EXPECT_EQ(0, kevent_slot_word(kevent_ring_slot(&self->q.map, 0)) &
		     KEVENT_WORD_READY);
	ASSERT_EQ(0, kq_attach(&late, &self->q));
	EXPECT_EQ(2 * SLOTS, late.map.nr_slots);
	ASSERT_EQ(1, kq_mod(&self->q, self->efd, EPOLLIN, 2));
	want_fd_event(&late, 2);
	want_none(&self->q, BY_RING);
	EXPECT_EQ(2 * SLOTS, self->q.map.nr_slots);
	kq_unmap(&late);
}

/* The last place that there is: beyond what 32 bits can tell */
TEST_F(mapping, of_the_largest_ring)
{
	struct kq large;

	ASSERT_EQ(0, kq_open(&large, KEVENT_MAX_SLOTS));
	ASSERT_EQ(1, kq_add(&large, self->efd, EPOLLIN, 1));
	for (int i = 0; i < 10; i++) {
		signal_eventfd(self->efd);
		want_fd_event(&large, 1);
	}
	/* To its end */
	kevent_ring_slot(&large.map, KEVENT_MAX_SLOTS - 1)->user_data = 1;
	kq_close(&large);

	ASSERT_EQ(1, kq_grow(&self->q, KEVENT_MAX_SLOTS));
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 2));
	want_fd_event(&self->q, 2);
	EXPECT_EQ(KEVENT_MAX_SLOTS, self->q.map.nr_slots);
}

TEST_F(mapping, can_be_moved)
{
	const size_t slots = self->q.params.slots_size;
	void *to, *p;

	to = mmap(NULL, slots, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, to);
	p = mremap(self->q.map.slots, slots, slots,
		   MREMAP_MAYMOVE | MREMAP_FIXED, to);
	ASSERT_EQ(to, p);
	self->q.map.slots = p;
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 1));
	signal_eventfd(self->efd);
	want_fd_event(&self->q, 1);
}

/*
 * What a program does to its own ring
 */

#define NR 8

struct hostile {
	struct kq victim;	/* of the program itself */
	struct kq other;	/* a queue that watches the same files */
	int efd[NR];
	__u64 seed;
	int stop;
	int bad_returns;
};

FIXTURE(hostile) {
	struct hostile h;
};

FIXTURE_SETUP(hostile)
{
	struct hostile *h = &self->h;

	h->seed = random_seed();
	if (!kq_setup(_metadata, &h->victim, NR))
		return;
	ASSERT_EQ(0, kq_open(&h->other, NR));
	for (int i = 0; i < NR; i++) {
		h->efd[i] = open_eventfd();
		ASSERT_LE(0, h->efd[i]);
		ASSERT_EQ(1, kq_add(&h->victim, h->efd[i], EPOLLIN, i));
		ASSERT_EQ(1, kq_add(&h->other, h->efd[i], EPOLLIN, i));
	}
}

FIXTURE_TEARDOWN(hostile)
{
	struct hostile *h = &self->h;

	kq_close(&h->victim);
	kq_close(&h->other);
}

static bool stopped(int *stop)
{
	return __atomic_load_n(stop, __ATOMIC_RELAXED);
}

static void *scribble(void *arg)
{
	struct hostile *h = arg;
	struct kevent_ring_map *map = &h->victim.map;
	__u64 state = h->seed;

	while (!stopped(&h->stop)) {
		__u64 rnd = next_random(&state);
		struct kevent_slot *slot = kevent_ring_slot(map, rnd >> 8);
		__u64 word = kevent_slot_word(slot);

		switch (rnd % 6) {
		case 0:		/* anything */
			word = next_random(&state);
			break;
		case 1:		/* back to where it was */
			word |= KEVENT_WORD_READY;
			break;
		case 2:		/* another lap */
			word += 2;
			break;
		case 3:		/* another value */
			word ^= 1ULL << (32 + (rnd >> 16) % 32);
			break;
		case 4:		/* an honest claim */
			word = KEVENT_WORD_CLAIMED(word);
			break;
		default:	/* another payload */
			memset(&slot->user_data, rnd >> 16,
			       sizeof(*slot) - sizeof(slot->word));
			continue;
		}
		__atomic_store_n(&slot->word, word, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void *collect(void *arg)
{
	struct hostile *h = arg;
	struct ukevent evs[NR];
	struct pollfd pfd = { .fd = h->victim.fd, .events = POLLIN };

	for (unsigned int i = 0; !stopped(&h->stop); i++) {
		int nr;

		switch (i % 4) {
		case 0:
			nr = kq_getevents(&h->victim, NULL, i % (NR + 1), 0, 1);
			break;
		case 1:
			nr = poll(&pfd, 1, 0);
			break;
		default:
			nr = kq_getevents(&h->victim, evs, i % 2, NR, 1);
		}
		if (nr < 0 || nr > NR)
			__atomic_fetch_add(&h->bad_returns, 1,
					   __ATOMIC_RELAXED);
	}
	return NULL;
}

/* Changes may fail for want of slots, but not in another way. */
static void *change(void *arg)
{
	struct hostile *h = arg;

	for (unsigned int i = 0; !stopped(&h->stop); i++) {
		int fd = h->efd[i % NR];
		int ret;

		switch (i / NR % 3) {
		case 0:
			ret = kq_mod(&h->victim, fd, EPOLLIN, i);
			break;
		case 1:
			ret = kq_del(&h->victim, fd);
			break;
		default:
			ret = kq_add(&h->victim, fd, EPOLLIN, i);
		}
		if (ret != 1 && ret != -ENOSPC && ret != -ENOENT)
			__atomic_fetch_add(&h->bad_returns, 1,
					   __ATOMIC_RELAXED);
	}
	return NULL;
}

TEST_F_TIMEOUT(hostile, scribbling_harms_nobody_else, 60)
{
	struct hostile *h = &self->h;
	static void *(* const fns[])(void *) = { scribble, collect, change };
	pthread_t threads[ARRAY_SIZE(fns)];
	__s64 end = now_ns() + NSEC_PER_SEC;
	struct ukevent evs[NR];
	int nr;

	for (size_t i = 0; i < ARRAY_SIZE(fns); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, fns[i], h));

	/* Whatever becomes of the victim, the other sees every event once. */
	for (unsigned int i = 0; now_ns() < end; i++) {
		int n = i % NR;

		signal_eventfd(h->efd[n]);
		want_event(&h->other, BY_RING, h->efd[n], EPOLLIN, EPOLLIN,
			   n);
		want_none(&h->other, BY_RING);
		drain_eventfd(h->efd[n]);
		if (_metadata->exit_code)
			break;
	}
	__atomic_store_n(&h->stop, 1, __ATOMIC_RELAXED);
	for (size_t i = 0; i < ARRAY_SIZE(fns); i++)
		pthread_join(threads[i], NULL);
	EXPECT_EQ(0, h->bad_returns);

	/* It comes to an end, and all the calls still work. */
	for (int i = 0; i < 100; i++) {
		nr = kq_getevents(&h->victim, evs, 0, NR, 0);
		if (nr <= 0)
			break;
	}
	EXPECT_EQ(0, nr);
	for (int i = 0; i < NR; i++) {
		int ret = kq_del(&h->victim, h->efd[i]);

		EXPECT_TRUE(ret == 1 || ret == -ENOENT)
			TH_LOG("deletion returned %d", ret);
	}
}

/* The kernel writes events to where it is about to read slots. */
TEST_F(hostile, collecting_into_the_ring_itself)
{
	struct hostile *h = &self->h;
	struct ukevent *evs = (struct ukevent *)h->victim.map.slots;
	unsigned int max = h->victim.params.slots_size / sizeof(*evs);

	for (int i = 0; i < 20; i++) {
		int nr;

		for (int n = 0; n < NR; n++)
			signal_eventfd(h->efd[n]);
		nr = kq_getevents(&h->victim, evs, 0, max, 0);
		EXPECT_LE(0, nr);
		EXPECT_GE(NR, nr);
	}
	for (int n = 0; n < NR; n++)
		want_event(&h->other, BY_RING, h->efd[n], EPOLLIN, EPOLLIN,
			   n);
	want_none(&h->other, BY_RING);
}

/* The kernel reads changes from where it writes events, and results, too. */
TEST_F(hostile, changes_that_lie_in_the_ring_itself)
{
	struct hostile *h = &self->h;
	struct ukevent *changes = (struct ukevent *)h->victim.map.slots;

	for (int n = 0; n < NR; n++) {
		int ret;

		signal_eventfd(h->efd[n]);
		changes[0] = kq_fd_change(KEVENT_OP_MOD, h->efd[n], EPOLLIN, n);
		changes[1] = kq_fd_change(KEVENT_OP_DEL, h->efd[n], 0, 0);
		ret = sys_kevent_ctl(h->victim.fd, changes, 2,
				     KEVENT_CTL_RESULTS);
		EXPECT_LE(0, ret);
		EXPECT_GE(2, ret);
	}
	for (int n = 0; n < NR; n++)
		want_event(&h->other, BY_RING, h->efd[n], EPOLLIN, EPOLLIN,
			   n);
	want_none(&h->other, BY_RING);
}

TEST_HARNESS_MAIN
