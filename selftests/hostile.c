// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: programs that do to their ring what nobody should.  Several threads
 * scribble over the slots while events are posted, moved and collected, and the
 * mappings come and go.  The kernel and other processes do not care, and no
 * byte of the kernel is seen where none belongs.
 */
#include "kevent_util.h"

#include <limits.h>
#include <sys/uio.h>

/*
 * A process that has nothing to do with it: what it posts, it gets.
 */

struct bystander {
	struct kq q;
	int efd;
	int stop;
	__u64 posted;		/* by triggers */
	__u64 written;		/* to the eventfd */
};

static void *bystander_post(void *arg)
{
	struct bystander *b = arg;

	while (!__atomic_load_n(&b->stop, __ATOMIC_RELAXED)) {
		if (kq_trigger(&b->q, b->posted % 3, 1, 0) != 1)
			break;
		b->posted++;
		signal_eventfd(b->efd);
		b->written++;
	}
	return NULL;
}

static bool bystander_collect(struct bystander *b, __u64 *sum, __u64 *read)
{
	struct ukevent evs[4];
	int nr = kq_collect(&b->q, BY_RING, evs, ARRAY_SIZE(evs));

	for (int i = 0; i < nr; i++) {
		if (evs[i].source == KEVENT_SOURCE_USER && evs[i].ident < 3 &&
		    evs[i].user_data == evs[i].ident + 100)
			*sum += evs[i].events;
		else if (evs[i].source == KEVENT_SOURCE_FD &&
			 evs[i].ident == b->efd && evs[i].user_data == 99)
			*read += drain_eventfd(b->efd);
		else
			_exit(3);
	}
	return nr > 0;
}

/* Until nobody holds the other end of @sock any more; ends the process. */
static void bystander_run(int sock)
{
	struct bystander b = { .efd = open_eventfd() };
	struct pollfd pfd = { .fd = sock, .events = POLLIN };
	__u64 sum = 0, read = 0;
	pthread_t thread;

	if (kq_open(&b.q, 4) || kq_add(&b.q, b.efd, EPOLLIN, 99) != 1)
		_exit(2);
	for (int i = 0; i < 3; i++)
		if (kq_add_user(&b.q, i, KEVENT_USER_COUNT, 0, 100 + i) != 1)
			_exit(2);
	if (pthread_create(&thread, NULL, bystander_post, &b))
		_exit(2);
	do {
		for (int i = 0; i < 20; i++) {
			kq_getevents(&b.q, NULL, 1, 0, 1);
			bystander_collect(&b, &sum, &read);
		}
	} while (!poll(&pfd, 1, 0));
	__atomic_store_n(&b.stop, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	while (bystander_collect(&b, &sum, &read))
		;
	if (!sum || !read)
		_exit(4);
	_exit(sum != b.posted || read != b.written);
}

/*
 * The ring that is scribbled over
 */

enum scribble {
	ANYTHING,		/* all of the slot */
	PLAUSIBLE,		/* words that could be, and payloads of others */
	LAPS,			/* other generations */
	ZERO,
	FILL,			/* all slots at once */
	MIXED,
	NR_SCRIBBLES,
};

#define NR	8
#define MAX_SLOTS 512

struct hostile {
	struct kq q;
	struct kq to;		/* to move to, and scribbled over as well */
	int efd[NR];
	int pipe[2];
	enum scribble how;
	__u64 seed;
	int stop;
	__u64 scribbles;
	unsigned int bad;	/* returned what it should not */
	int what;		/* one of these */
};

static bool stopped(struct hostile *h)
{
	return __atomic_load_n(&h->stop, __ATOMIC_RELAXED);
}

static void bad(struct hostile *h, int what)
{
	__atomic_store_n(&h->what, what, __ATOMIC_RELAXED);
	__atomic_fetch_add(&h->bad, 1, __ATOMIC_RELAXED);
}

static void scribble_slot(unsigned char *slots, __u32 nr, __u32 i,
			  enum scribble how, __u64 *random)
{
	struct kevent_slot *slot = (struct kevent_slot *)slots + i;
	__u64 rnd = next_random(random);
	__u64 word = kevent_slot_word(slot);
	__u64 *all = (__u64 *)slot;

	switch (how) {
	case ANYTHING:
		all[rnd % 4] = next_random(random);
		return;
	case PLAUSIBLE:
		if (rnd & 1) {
			memcpy(slot, slots + (rnd >> 8) % nr * sizeof(*slot),
			       sizeof(*slot));
			return;
		}
		if (rnd & 2)
			word |= KEVENT_WORD_READY;
		else
			word = KEVENT_WORD_CLAIMED(word);
		if (rnd & 4)
			word ^= 1ULL << (KEVENT_WORD_VALUE_SHIFT + (rnd >> 8) % 32);
		break;
	case LAPS:
		word += ((rnd & 0xffff) - 0x8000) << KEVENT_WORD_GEN_SHIFT;
		if (rnd & 1 << 16)
			word ^= (__u64)KEVENT_WORD_GEN_MASK << KEVENT_WORD_GEN_SHIFT;
		break;
	case ZERO:
		word = 0;
		break;
	default:
		memset(slots, rnd, nr * sizeof(*slot));
		return;
	}
	__atomic_store_n(&slot->word, word, __ATOMIC_RELEASE);
}

static void *scribble(void *arg)
{
	struct hostile *h = arg;
	/* Sets of 8, 16, and so on; more can be there every now and then. */
	unsigned char *sets[2][7] = { };
	__u64 n = __atomic_fetch_add(&h->seed, 1, __ATOMIC_RELAXED);
	__u64 random = n * 0x9e3779b97f4a7c15ULL | 1;
	__u64 count = 0;

	while (!stopped(h)) {
		const struct kq *q = count & 1 ? &h->to : &h->q;
		int k = next_random(&random) % 7;
		unsigned char **set = &sets[count & 1][k];
		enum scribble how = h->how;
		__u32 nr = NR << k;

		if (!*set && (!k || kevent_ring_rings(&q->map) & nr)) {
			*set = mmap(NULL, kevent_set_size(nr, q->map.slot_size),
				    PROT_READ | PROT_WRITE, MAP_SHARED, q->fd,
				    KEVENT_OFF_SLOTS(nr));
			if (*set == MAP_FAILED)
				*set = NULL;
		}
		count++;
		if (!*set)
			continue;
		if (how == MIXED)
			how = next_random(&random) % MIXED;
		scribble_slot(*set, nr, next_random(&random) % nr, how, &random);
	}
	__atomic_fetch_add(&h->scribbles, count, __ATOMIC_RELAXED);
	return NULL;
}

/* All kinds of sources have something to say. */
static void *post(void *arg)
{
	struct hostile *h = arg;
	char c[16];

	for (unsigned int i = 0; !stopped(h); i++) {
		int ret = kq_trigger(i & 8 ? &h->to : &h->q, i % NR, 1, 0);

		if (ret != 1 && ret != -ENOENT)
			bad(h, ret);
		signal_eventfd(h->efd[i % NR]);
		if (i % 3 == 0)
			drain_eventfd(h->efd[i % NR]);
		if (i % 5 == 0 && write(h->pipe[1], c, 1) < 0)
			while (read(h->pipe[0], c, sizeof(c)) == sizeof(c))
				;
	}
	return NULL;
}

static void *collect(void *arg)
{
	struct hostile *h = arg;
	struct ukevent evs[NR];
	struct pollfd pfd = { .events = POLLIN };

	for (unsigned int i = 0; !stopped(h); i++) {
		const struct kq *q = i & 4 ? &h->to : &h->q;
		int nr, max = NR;

		switch (i % 4) {
		case 0:
			nr = kq_getevents(q, NULL, i % (NR + 1), 0, 1);
			break;
		case 1:
			pfd.fd = q->fd;
			nr = poll(&pfd, 1, 0);
			max = 1;
			break;
		default:
			nr = kq_getevents(q, evs, i % 2, NR, 1);
		}
		if (nr < 0 || nr > max)
			bad(h, nr);
		for (int n = 0; i % 4 > 1 && n < nr; n++)
			if (!evs[n].events || evs[n].op || evs[n].result ||
			    evs[n].data || evs[n].fflags || evs[n].interval ||
			    evs[n].resv || evs[n].user_data >> 8 != 0x77)
				bad(h, 0);
	}
	return NULL;
}

/* What can be changed; the user data is what collect() looks for. */
static struct ukevent random_change(const struct hostile *h, const struct kq *to,
				    __u64 rnd)
{
	static const __u16 ops[] = {
		KEVENT_OP_ADD, KEVENT_OP_ADD, KEVENT_OP_SET, KEVENT_OP_MOD,
		KEVENT_OP_DEL, KEVENT_OP_ENABLE, KEVENT_OP_DISABLE, KEVENT_OP_MOVE,
	};
	static const __u32 modes[] = {
		0, 0, KEVENT_ONESHOT, KEVENT_DISPATCH, KEVENT_DISABLED,
	};
	__u32 mode = modes[(rnd >> 16) % ARRAY_SIZE(modes)];
	__u16 op = ops[rnd % ARRAY_SIZE(ops)];
	unsigned int i = (rnd >> 24) % NR;
	__u64 udata = 0x7700 + i;
	__u16 source = KEVENT_SOURCE_FD + (rnd >> 8) % 3;
	bool named = op != KEVENT_OP_ADD && op != KEVENT_OP_SET && op != KEVENT_OP_MOD;
	int fd = i ? h->efd[i] : h->pipe[0];
	struct ukevent change;

	if ((rnd >> 32) % 256 == 0) {
		change = kq_change(KEVENT_SOURCE_QUEUE, KEVENT_OP_GROW, 0, 0);
		change.data = NR << (rnd >> 40) % 7;
		return change;
	}
	if (named) {
		change = kq_change(source, op,
				   source == KEVENT_SOURCE_FD ? (__u64)fd : i, 0);
		if (op == KEVENT_OP_MOVE)
			change.data = to->fd;
		return change;
	}
	switch (source) {
	case KEVENT_SOURCE_FD:
		return kq_mode_change(op, fd, EPOLLIN,
				      mode | (rnd >> 48 & 1 ? KEVENT_EDGE :
							      KEVENT_LEVEL), udata);
	case KEVENT_SOURCE_TIMER:
		return kq_timer_change(op, i, CLOCK_MONOTONIC, 1000 * i,
				       100000 * (i % 3), mode, udata);
	default:
		return kq_user_change(op, i, KEVENT_USER_COUNT, mode, udata);
	}
}

static void *change(void *arg)
{
	struct hostile *h = arg;
	__u64 random = __atomic_fetch_add(&h->seed, 1, __ATOMIC_RELAXED) | 1;

	for (unsigned int i = 0; !stopped(h); i++) {
		const struct kq *q = i & 1 ? &h->to : &h->q;
		const struct kq *to = i & 1 ? &h->q : &h->to;
		struct ukevent c = random_change(h, to, next_random(&random));
		int ret = kq_apply(q, c);

		/* It does not grow, has no such registration, has one, is full. */
		if (ret != 1 && ret != -ENOENT && ret != -EEXIST && ret != -ENOSPC &&
		    !(ret == -EINVAL && c.op == KEVENT_OP_GROW))
			bad(h, ret);
	}
	return NULL;
}

FIXTURE(scribbled) {
	struct hostile h;
	int sock[2];
	pid_t bystander;
};

FIXTURE_VARIANT(scribbled) {
	enum scribble how;
};

FIXTURE_VARIANT_ADD(scribbled, by_anything) { .how = ANYTHING };
FIXTURE_VARIANT_ADD(scribbled, by_what_could_be) { .how = PLAUSIBLE };
FIXTURE_VARIANT_ADD(scribbled, by_other_laps) { .how = LAPS };
FIXTURE_VARIANT_ADD(scribbled, by_zeros) { .how = ZERO };
FIXTURE_VARIANT_ADD(scribbled, at_once) { .how = FILL };
FIXTURE_VARIANT_ADD(scribbled, by_all_of_these) { .how = MIXED };

FIXTURE_SETUP(scribbled)
{
	struct hostile *h = &self->h;

	if (!kq_setup(_metadata, &h->q, NR))
		return;
	ASSERT_EQ(0, kq_open(&h->to, NR));
	h->how = variant->how;
	h->seed = random_seed();
	for (int i = 0; i < NR; i++) {
		h->efd[i] = open_eventfd();
		ASSERT_LE(0, h->efd[i]);
	}
	ASSERT_EQ(0, pipe2(h->pipe, O_NONBLOCK | O_CLOEXEC));
	ASSERT_EQ(0, sync_open(self->sock));
	self->bystander = fork();
	ASSERT_LE(0, self->bystander);
	if (!self->bystander) {
		close(self->sock[1]);
		bystander_run(self->sock[0]);
	}
}

FIXTURE_TEARDOWN(scribbled)
{
	kq_close(&self->h.q);
	kq_close(&self->h.to);
}

/* How long it goes on: until so many changes were made by this thread as well. */
#define CHANGES 2000

TEST_F_TIMEOUT(scribbled, ring_harms_nobody_else, 120)
{
	struct hostile *h = &self->h;
	static void *(* const fns[])(void *) = {
		scribble, scribble, post, collect, change,
	};
	pthread_t threads[ARRAY_SIZE(fns)];
	__u64 random = random_seed();

	for (size_t i = 0; i < ARRAY_SIZE(fns); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, fns[i], h));
	for (int i = 0; i < CHANGES; i++) {
		kq_apply(&h->q, random_change(h, &h->to, next_random(&random)));
		kq_wake(&h->to);
	}
	__atomic_store_n(&h->stop, 1, __ATOMIC_RELAXED);
	for (size_t i = 0; i < ARRAY_SIZE(fns); i++)
		pthread_join(threads[i], NULL);
	EXPECT_EQ(0, h->bad)
		TH_LOG("one of these returned %d", h->what);
	EXPECT_NE(0, h->scribbles);

	close(self->sock[1]);
	EXPECT_EQ(0, reap(self->bystander));

	/*
	 * Left alone, the queues work as if nothing had been: all their slots can
	 * be reserved, and each event comes once.
	 */
	for (int k = 0; k < 2; k++) {
		struct kq *q = k ? &h->to : &h->q;
		unsigned int room = 0, calls = 0;
		struct ukevent ev;

		for (int i = 0; i < NR; i++) {
			int fd = i ? h->efd[i] : h->pipe[0];

			kq_del(q, fd);
			kq_op(q, KEVENT_SOURCE_TIMER, KEVENT_OP_DEL, i, 0);
			kq_op(q, KEVENT_SOURCE_USER, KEVENT_OP_DEL, i, 0);
		}
		while (kq_getevents(q, &ev, 0, 1, 0) == 1)
			ASSERT_GT(4 * MAX_SLOTS, ++calls);
		while (kq_add_user(q, room, KEVENT_USER_COUNT, 0, room) == 1)
			ASSERT_GE(MAX_SLOTS, ++room);
		EXPECT_EQ(q->map.ring->slots, room);
		for (unsigned int i = 0; i < room; i++)
			EXPECT_EQ(1, kq_trigger(q, i, i + 1, 0));
		for (unsigned int i = 0; i < room; i++) {
			ASSERT_EQ(1, kq_getevents(q, &ev, 0, 1, 0));
			EXPECT_EQ(i, ev.ident);
			EXPECT_EQ(i + 1, ev.events);
		}
		want_none(q, BY_SYSCALL);
	}
}

/*
 * What is in memory that nobody has written to
 */

/* So that pages that were not cleared are seen: what others left is not zero. */
static void dirty_memory(void)
{
	size_t size = 64 << 20;
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return;
	memset(p, 0xa5, size);
	munmap(p, size);
}

/* The first byte that is not zero, or @size */
static size_t first_nonzero(const void *p, size_t size)
{
	const unsigned char *bytes = p;
	size_t i = 0;

	while (i < size && !bytes[i])
		i++;
	return i;
}

static void want_header(struct __test_metadata *_metadata, const struct kq *q,
			struct kevent_ring want)
{
	const struct kevent_ring *ring = q->map.ring;
	size_t rest = q->params.header_size - sizeof(*ring);

	want.slot_size = sizeof(struct kevent_slot);
	EXPECT_EQ(0, memcmp(&want, ring, sizeof(want)));
	EXPECT_EQ(rest, first_nonzero(ring + 1, rest));
}

FIXTURE(fresh) {
	struct kq q;
};

FIXTURE_VARIANT(fresh) {
	__u32 slots;
};

FIXTURE_VARIANT_ADD(fresh, one) { .slots = 1 };
FIXTURE_VARIANT_ADD(fresh, half_a_page) { .slots = 64 };
FIXTURE_VARIANT_ADD(fresh, page) { .slots = 128 };
FIXTURE_VARIANT_ADD(fresh, many_pages) { .slots = 16384 };

FIXTURE_SETUP(fresh)
{
	dirty_memory();
	kq_setup(_metadata, &self->q, variant->slots);
}

FIXTURE_TEARDOWN(fresh)
{
	kq_close(&self->q);
}

TEST_F(fresh, ring_is_zero_but_for_what_it_says)
{
	struct kq *q = &self->q;
	struct kevent_ring want = {
		.slots = variant->slots,
		.rings = variant->slots,
	};
	struct kevent_params params;

	want_header(_metadata, q, want);
	EXPECT_EQ(q->map.slots_size, first_nonzero(q->map.slots, q->map.slots_size));

	/* What was not asked for is as it was. */
	params = q->params;
	params.slots = 0;
	params.header_size = 0;
	params.slots_size = 0;
	EXPECT_EQ(sizeof(params), first_nonzero(&params, sizeof(params)));

	dirty_memory();
	ASSERT_EQ(1, kq_grow(q, 2 * variant->slots));
	want.slots *= 2;
	/* The old set has no events, so it is gone. */
	want.rings = want.slots;
	want.incompat = KEVENT_RING_INCOMPAT_GROWN;
	want_header(_metadata, q, want);
	ASSERT_EQ(0, kevent_ring_go(&q->map, variant->slots));
	EXPECT_EQ(q->map.slots_size, first_nonzero(q->map.slots, q->map.slots_size));
}

/*
 * The program fills the slots with ones: the kernel says what every byte of a slot
 * is that it posts to, and writes to no other.
 */
TEST(slots_and_events_have_nothing_but_what_they_say)
{
	struct ukevent changes[] = {
		kq_mode_change(KEVENT_OP_ADD, open_eventfd(), EPOLLOUT, KEVENT_EDGE,
			       0x1122334455667788),
		kq_user_change(KEVENT_OP_ADD, ~0ULL, KEVENT_USER_COUNT, 0, 1),
		kq_user_change(KEVENT_OP_ADD, 5, KEVENT_USER_FLAGS, 0, ~0ULL),
		kq_timer_change(KEVENT_OP_ADD, 3, CLOCK_MONOTONIC, 0, 0, 0, 0),
		kq_mode_change(KEVENT_OP_ADD, open_eventfd(), EPOLLOUT, KEVENT_LEVEL,
			       2),
	};
	enum { NR_EVENTS = ARRAY_SIZE(changes), NR_EDGE = 4 };
	__u32 values[] = { EPOLLOUT, 7, KEVENT_NOTE_TRIGGER | 9, 1, EPOLLOUT };
	struct ukevent evs[NR_EVENTS + 1];
	bool seen[NR_EVENTS] = { };
	struct kevent_slot *slots;
	struct kq q;

	if (!kq_setup(_metadata, &q, 8))
		return;
	slots = (struct kevent_slot *)q.map.slots;
	memset(slots, 0xff, q.map.slots_size);
	for (int i = 0; i < NR_EVENTS; i++) {
		changes[i].tag = i ? (__u32)i : 0xfedcba98;
		changes[i].result = 0;
		ASSERT_EQ(1, kq_apply(&q, changes[i]));
		/* One after the other, as their places in the ring are */
		if (i == 1) {
			struct ukevent t = kq_trigger_change(~0ULL, 7, 0);

			t.tag = changes[i].tag;
			ASSERT_EQ(1, kq_apply(&q, t));
		} else if (i == 2) {
			struct ukevent t = kq_trigger_change(5, 0,
							     KEVENT_NOTE_TRIGGER |
							     KEVENT_NOTE_FFOR | 9);

			t.tag = changes[i].tag;
			ASSERT_EQ(1, kq_apply(&q, t));
		} else if (i == 3) {
			ASSERT_EQ(4, kq_getevents(&q, NULL, 4, 0, PATIENCE_MS));
		}
	}
	for (int i = 0; i < NR_EDGE; i++) {
		struct kevent_slot want = {
			.word = (__u64)values[i] << KEVENT_WORD_VALUE_SHIFT |
				1 << KEVENT_WORD_GEN_SHIFT | KEVENT_WORD_READY,
			.user_data = changes[i].user_data,
			.ident = changes[i].ident,
			.source = changes[i].source,
			.tag = changes[i].tag,
		};

		EXPECT_EQ(0, memcmp(&want, &slots[i], sizeof(want)))
			TH_LOG("slot %d: %llx", i, slots[i].word);
	}
	for (size_t i = NR_EDGE * sizeof(*slots); i < q.map.slots_size; i++) {
		ASSERT_EQ(0xff, q.map.slots[i])
			TH_LOG("byte %zu", i);
	}
	want_header(_metadata, &q, (struct kevent_ring) {
		.slots = 8,
		.rings = 8,
		.flags = KEVENT_RING_LEVEL_READY,
	});

	memset(evs, 0xff, sizeof(evs));
	ASSERT_EQ(NR_EVENTS, kq_getevents(&q, evs, 0, NR_EVENTS + 1, 0));
	for (int n = 0; n < NR_EVENTS; n++) {
		struct ukevent want;
		int i = 0;

		while (i < NR_EVENTS - 1 && evs[n].tag != changes[i].tag)
			i++;
		want = (struct ukevent) {
			.ident = changes[i].ident,
			.source = changes[i].source,
			.flags = changes[i].flags,
			.events = values[i],
			.user_data = changes[i].user_data,
			.tag = changes[i].tag,
		};
		EXPECT_FALSE(seen[i]);
		seen[i] = true;
		EXPECT_EQ(0, memcmp(&want, &evs[n], sizeof(want)))
			TH_LOG("event %d, of change %d", n, i);
	}
	for (size_t i = 0; i < sizeof(evs[0]); i++)
		EXPECT_EQ(0xff, ((unsigned char *)&evs[NR_EVENTS])[i]);
	kq_close(&q);
}

/* Of a change, nothing is written but its result. */
TEST(results_are_all_that_is_written_to_changes)
{
	struct ukevent changes[4], before[4];
	struct kq q;

	if (!kq_setup(_metadata, &q, 8))
		return;
	changes[0] = kq_user_change(KEVENT_OP_ADD, 1, KEVENT_USER_COUNT, 0, ~0ULL);
	changes[1] = changes[0];
	changes[2] = kq_trigger_change(1, 9, 0);
	memset(&changes[3], 0xff, sizeof(changes[3]));
	memcpy(before, changes, sizeof(changes));
	before[1].result = -EEXIST;
	before[3].result = -EINVAL;
	EXPECT_EQ(2, sys_kevent_ctl(q.fd, changes, 4, KEVENT_CTL_RESULTS));
	EXPECT_EQ(0, memcmp(before, changes, sizeof(changes)));
	kq_close(&q);
}

/*
 * Mappings that come and go
 */

#define TURNS 150
#define TRIGGERS 3000

struct mapper {
	struct kq q;
	__u64 seed;
	int stop;
	__u64 sent;
	unsigned int bad;
};

/* Handled, so that the kernel's log does not have it */
static void end_by_signal(int sig)
{
	_exit(128 + sig);
}

/* Touch what may not be there any more: that can only be the end of the child. */
static int touch_in_child(unsigned char *p, size_t size)
{
	pid_t pid = fork();

	if (!pid) {
		signal(SIGBUS, end_by_signal);
		signal(SIGSEGV, end_by_signal);
		for (size_t i = 0; i < size; i += 512)
			__atomic_load_n(&p[i], __ATOMIC_RELAXED);
		_exit(0);
	}
	return reap(pid);
}

static void *map_and_unmap(void *arg)
{
	struct mapper *m = arg;
	size_t page = sysconf(_SC_PAGESIZE);
	size_t size = m->q.params.slots_size;
	__u64 random = m->seed;
	unsigned int turn;

	for (turn = 0; turn < TURNS; turn++) {
		__u64 rnd = next_random(&random);
		unsigned char *p, *to;
		char buf[64];
		int status;

		/* It is never private. */
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, m->q.fd,
			 KEVENT_OFF_SLOTS(m->q.params.slots));
		if (p != MAP_FAILED)
			m->bad++;
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, m->q.fd,
			 KEVENT_OFF_SLOTS(m->q.params.slots));
		if (p == MAP_FAILED) {
			m->bad++;
			break;
		}
		switch (rnd % 8) {
		case 0:		/* a hole in the middle */
			munmap(p + page, page);
			break;
		case 1:
			mprotect(p, size, PROT_NONE);
			mprotect(p, page, PROT_READ | PROT_WRITE);
			break;
		case 2:		/* elsewhere, and a part of it */
			to = mremap(p, size, page, MREMAP_MAYMOVE);
			if (to == MAP_FAILED)
				m->bad++;
			else
				munmap(to, page);
			break;
		case 3:		/* another mapping of the same, if that can be had */
			to = mremap(p, 0, size, MREMAP_MAYMOVE);
			if (to != MAP_FAILED)
				munmap(to, size);
			break;
		case 4:		/* the pages go, and do not come back by themselves */
			madvise(p, size, MADV_DONTNEED);
			status = touch_in_child(p, size);
			if (status && status != 128 + SIGBUS)
				m->bad++;
			break;
		case 5:
			madvise(p, page, MADV_REMOVE);
			madvise(p, size, MADV_DONTFORK);
			madvise(p, size, MADV_PAGEOUT);
			mlock(p, size);
			status = touch_in_child(p, size);
			if (status && status != 128 + SIGSEGV)
				m->bad++;
			break;
		case 6: {	/* read by way of the process */
			struct iovec local = { buf, sizeof(buf) };
			struct iovec remote = { p, sizeof(buf) };

			process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
			break;
		}
		default:	/* something else in its place */
			if (mmap(p, page, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != p)
				m->bad++;
		}
		munmap(p, size);
	}
	__atomic_store_n(&m->stop, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void *trigger(void *arg)
{
	struct mapper *m = arg;

	for (int i = 0; i < TRIGGERS ||
	     !__atomic_load_n(&m->stop, __ATOMIC_ACQUIRE); i++) {
		if (kq_trigger(&m->q, i % 200, 1, 0) != 1)
			m->bad++;
		m->sent++;
	}
	__atomic_store_n(&m->stop, 2, __ATOMIC_RELEASE);
	return NULL;
}

FIXTURE(mappings) { };

FIXTURE_SETUP(mappings)
{
}

FIXTURE_TEARDOWN(mappings)
{
}

/* Whatever becomes of the mappings, the queue is the same, and so is its memory. */
TEST_F_TIMEOUT(mappings, come_and_go_and_nothing_is_lost, 120)
{
	struct mapper m = { .seed = random_seed() };
	pthread_t threads[2];
	struct ukevent evs[16];
	__u64 got = 0;
	int nr, stop;

	/* Two pages of slots */
	if (!kq_setup(_metadata, &m.q, 256))
		return;
	for (int i = 0; i < 200; i++)
		ASSERT_EQ(1, kq_add_user(&m.q, i, KEVENT_USER_COUNT, 0, i));
	ASSERT_EQ(0, pthread_create(&threads[0], NULL, map_and_unmap, &m));
	ASSERT_EQ(0, pthread_create(&threads[1], NULL, trigger, &m));
	do {
		stop = __atomic_load_n(&m.stop, __ATOMIC_ACQUIRE);
		nr = kq_getevents(&m.q, evs, 0, ARRAY_SIZE(evs), 1);
		for (int i = 0; i < nr; i++)
			got += evs[i].events;
	} while (nr > 0 || stop != 2);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	EXPECT_EQ(m.sent, got);
	EXPECT_EQ(0, m.bad);
	kq_close(&m.q);
}

/* Who has a page in use beyond the life of the queue has it for itself. */
TEST(pages_that_others_have_in_use_outlive_the_queue)
{
	size_t page = sysconf(_SC_PAGESIZE);
	struct kevent_slot got;
	struct iovec iov;
	int pipe[2];
	struct kq q;

	if (!kq_setup(_metadata, &q, 128))
		return;
	ASSERT_EQ(1, kq_add_user(&q, 5, KEVENT_USER_COUNT, 0, 0x1234));
	ASSERT_EQ(1, kq_trigger(&q, 5, 6, 0));
	ASSERT_EQ(0, pipe2(pipe, O_CLOEXEC));
	iov = (struct iovec) { q.map.slots, page };
	ASSERT_EQ(page, vmsplice(pipe[1], &iov, 1, 0));
	kq_close(&q);
	dirty_memory();
	ASSERT_EQ(sizeof(got), read(pipe[0], &got, sizeof(got)));
	/* The end of the queue took the event back, and nobody wrote to it since. */
	EXPECT_EQ(1 << KEVENT_WORD_GEN_SHIFT | KEVENT_WORD_READY, got.word);
	EXPECT_EQ(0x1234, got.user_data);
	EXPECT_EQ(5, got.ident);
	close(pipe[0]);
	close(pipe[1]);
}

TEST_HARNESS_MAIN
