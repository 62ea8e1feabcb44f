// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: several consumers claim from one ring while sources are written to.
 * Nothing is lost, and nothing is claimed twice.
 *
 * Producers count what they write, consumers what they read because an event
 * told them to.  An event that is lost, or a consumer that looks at its source
 * too early, leaves something in a source that no event will tell of: the
 * numbers differ.
 */
#include "kevent_util.h"

#define WRITES		20000	/* of all producers together */
#define SOURCES		16
#define MAX_THREADS	4
#define BATCH		5

/* No claim for so long, and there will be none. */
#define IDLE_MS		100
#define IDLE_ROUNDS	20

/* Shared memory, because consumers can be processes */
struct shared {
	struct kq q;
	int in[SOURCES];	/* what producers write to */
	int out[SOURCES];	/* what consumers watch and read */
	int producers;
	int producing;
	__aligned_u64 sum;	/* what was read */
	__aligned_u64 claims;
	int doubled;		/* positions claimed twice */
	int wrong;		/* events that make no sense, and errors */
	unsigned char claimed[2 * WRITES + SOURCES];	/* by position */
};

struct consumer {
	struct shared *sh;
	enum collect_by by;
	pthread_t thread;
	pid_t pid;
};

struct producer {
	struct shared *sh;
	int number;
	pthread_t thread;
};

FIXTURE(consumers) {
	struct shared *sh;
};

FIXTURE_VARIANT(consumers) {
	int producers;
	int by_ring;		/* consumers that claim themselves */
	int by_call;		/* consumers that use kevent_getevents() */
	bool sockets;		/* sources are sockets, not eventfds */
	bool processes;		/* consumers are processes, not threads */
};

FIXTURE_VARIANT_ADD(consumers, one_for_one_producer) {
	.producers = 1, .by_ring = 1,
};

FIXTURE_VARIANT_ADD(consumers, two_for_one_producer) {
	.producers = 1, .by_ring = 2,
};

FIXTURE_VARIANT_ADD(consumers, two_for_two_producers) {
	.producers = 2, .by_ring = 2,
};

FIXTURE_VARIANT_ADD(consumers, four_for_four_producers) {
	.producers = 4, .by_ring = 4,
};

FIXTURE_VARIANT_ADD(consumers, by_ring_and_by_call) {
	.producers = 2, .by_ring = 1, .by_call = 1,
};

FIXTURE_VARIANT_ADD(consumers, two_by_ring_and_two_by_call) {
	.producers = 2, .by_ring = 2, .by_call = 2,
};

FIXTURE_VARIANT_ADD(consumers, two_by_call) {
	.producers = 2, .by_call = 2,
};

FIXTURE_VARIANT_ADD(consumers, two_of_sockets) {
	.producers = 2, .by_ring = 2, .sockets = true,
};

FIXTURE_VARIANT_ADD(consumers, of_sockets_by_ring_and_by_call) {
	.producers = 2, .by_ring = 1, .by_call = 1, .sockets = true,
};

FIXTURE_VARIANT_ADD(consumers, in_two_processes) {
	.producers = 2, .by_ring = 2, .processes = true,
};

static struct shared *open_shared(struct __test_metadata *_metadata,
				  int producers, bool sockets)
{
	struct shared *sh;

	sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, sh);
	if (!kq_setup(_metadata, &sh->q, SOURCES))
		return sh;
	for (int i = 0; i < SOURCES; i++) {
		int s[2];

		if (sockets) {
			ASSERT_EQ(0, sync_open(s));
			ASSERT_EQ(0, fcntl(s[0], F_SETFL, O_NONBLOCK));
			sh->out[i] = s[0];
			sh->in[i] = s[1];
		} else {
			sh->out[i] = open_eventfd();
			ASSERT_LE(0, sh->out[i]);
			sh->in[i] = sh->out[i];
		}
		ASSERT_EQ(1, kq_add(&sh->q, sh->out[i], EPOLLIN, i));
	}
	sh->producers = producers;
	sh->producing = producers;
	return sh;
}

FIXTURE_SETUP(consumers)
{
	self->sh = open_shared(_metadata, variant->producers, variant->sockets);
}

FIXTURE_TEARDOWN(consumers)
{
	kq_close(&self->sh->q);
}

/* A socket takes one byte of this, and an eventfd one, too. */
static void produce_one(int fd)
{
	if (send(fd, "x", 1, MSG_NOSIGNAL) < 0 && errno == ENOTSOCK)
		signal_eventfd(fd);
}

static void *produce(void *arg)
{
	struct producer *p = arg;
	struct shared *sh = p->sh;

	for (int i = p->number; i < WRITES; i += sh->producers)
		produce_one(sh->in[(i * 7 + i / 1000) % SOURCES]);
	__atomic_fetch_sub(&sh->producing, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* Reads all that there is, as is due when events tell of changes. */
static __u64 consume_source(int fd)
{
	__u64 buf[64], sum = 0;
	ssize_t n;

	while ((n = recv(fd, buf, sizeof(buf), 0)) > 0)
		sum += n;
	if (n < 0 && errno == ENOTSOCK) {
		for (;;) {
			__u64 val = drain_eventfd(fd);

			if (!val)
				break;
			sum += val;
		}
	}
	return sum;
}

static void count_wrong(struct shared *sh)
{
	__atomic_fetch_add(&sh->wrong, 1, __ATOMIC_RELAXED);
}

static void note_claim(struct shared *sh, __u64 pos)
{
	/* There cannot be more positions than writes. */
	if (pos >= sizeof(sh->claimed))
		count_wrong(sh);
	else if (__atomic_exchange_n(&sh->claimed[pos], 1, __ATOMIC_RELAXED))
		__atomic_fetch_add(&sh->doubled, 1, __ATOMIC_RELAXED);
}

/* Claims a batch; if there is nothing, waits for a while. */
static int collect_batch(struct shared *sh, struct kq *q, enum collect_by by,
			 struct ukevent *evs)
{
	int nr = 0;

	if (by == BY_SYSCALL)
		return kq_getevents(q, evs, 1, BATCH, IDLE_MS);

	while (nr < BATCH && kevent_ring_claim(&q->map, &evs[nr])) {
		note_claim(sh, q->map.claimed);
		nr++;
	}
	kevent_ring_fence();
	if (!nr) {
		int ret = kq_getevents(q, NULL, 1, 0, IDLE_MS);

		if (ret < 0 || ret > 1)
			return -1;
	}
	return nr;
}

/* Who sees that all was read tells those who wait, not to let them wait on. */
static void end_all(struct shared *sh)
{
	if (kq_wake(&sh->q) != 1)
		count_wrong(sh);
}

static void consume(struct shared *sh, enum collect_by by)
{
	struct kq q = sh->q;	/* with a cursor of its own */
	struct ukevent evs[BATCH];
	int idle = 0;

	while (idle < IDLE_ROUNDS &&
	       __atomic_load_n(&sh->sum, __ATOMIC_RELAXED) < WRITES) {
		bool over = !__atomic_load_n(&sh->producing, __ATOMIC_ACQUIRE);
		int nr = collect_batch(sh, &q, by, evs);

		if (nr < 0) {
			count_wrong(sh);
			return;
		}
		idle = nr || !over ? 0 : idle + 1;
		for (int i = 0; i < nr; i++) {
			__u64 n = evs[i].user_data;

			if (n >= SOURCES || evs[i].ident != (__u64)sh->out[n] ||
			    evs[i].source != KEVENT_SOURCE_FD ||
			    !fd_value_ok(evs[i].events, EPOLLIN, EPOLLIN)) {
				count_wrong(sh);
				continue;
			}
			__atomic_fetch_add(&sh->sum, consume_source(sh->out[n]),
					   __ATOMIC_RELAXED);
		}
		__atomic_fetch_add(&sh->claims, nr, __ATOMIC_RELAXED);
	}
	end_all(sh);
}

static void *consume_thread(void *arg)
{
	struct consumer *c = arg;

	consume(c->sh, c->by);
	return NULL;
}

/* Starts all producers and waits until they have written everything. */
static int run_producers(struct shared *sh)
{
	struct producer prod[MAX_THREADS];
	int started, err = 0;

	for (started = 0; started < sh->producers; started++) {
		prod[started].sh = sh;
		prod[started].number = started;
		err = -pthread_create(&prod[started].thread, NULL, produce,
				      &prod[started]);
		if (err)
			break;
	}
	for (int i = 0; i < started; i++)
		pthread_join(prod[i].thread, NULL);
	return err;
}

static int start_consumer(struct consumer *c, bool process)
{
	if (!process)
		return -pthread_create(&c->thread, NULL, consume_thread, c);
	c->pid = fork();
	if (!c->pid) {
		consume(c->sh, c->by);
		_exit(0);
	}
	return c->pid < 0 ? -errno : 0;
}

/*
 * What is left tells of what was read already, everything comes to rest, and no
 * position was claimed more than once, by whatever means.
 *
 * With consumers @by_ring alone, each was claimed once.  Those who use the call
 * need not be told of an event that is no longer true when they collect it.
 */
static void want_rest(struct __test_metadata *_metadata, struct shared *sh,
		      bool by_ring)
{
	struct kq q = sh->q;
	struct ukevent ev;

	/*
	 * All was written, and these sources tell of it at once.  Of two
	 * consumers, one can claim before its turn, so that an event had to
	 * wait behind the ring; if the call found it, it would not tell of it.
	 */
	while (kq_collect(&q, BY_RING, &ev, 1) ||
	       (!kq_let_in(&q) && kq_collect(&q, BY_RING, &ev, 1)) ||
	       kq_collect(&q, BY_SYSCALL, &ev, 1) > 0) {
		sh->claims++;
		EXPECT_EQ(0, consume_source(ev.ident));
		if (sh->claims > WRITES)
			break;
	}
	EXPECT_EQ(0, kevent_ring_flags(&q.map));

	/* Nothing can be claimed: this takes the cursor to the end. */
	want_none(&q, BY_RING);
	EXPECT_GE(q.map.cursor, sh->claims);
	if (by_ring) {
		EXPECT_EQ(q.map.cursor, sh->claims)
			TH_LOG("positions were lost");
	}
	EXPECT_LT(0, sh->claims);
	EXPECT_GE(WRITES, sh->claims);
}

TEST_F_TIMEOUT(consumers, lose_nothing_and_claim_nothing_twice, 60)
{
	int nr = variant->by_ring + variant->by_call;
	struct consumer cons[MAX_THREADS];
	struct shared *sh = self->sh;

	for (int i = 0; i < nr; i++) {
		cons[i].sh = sh;
		cons[i].by = i < variant->by_ring ? BY_RING : BY_SYSCALL;
		ASSERT_EQ(0, start_consumer(&cons[i], variant->processes));
	}
	ASSERT_EQ(0, run_producers(sh));
	for (int i = 0; i < nr; i++) {
		EXPECT_EQ(0, variant->processes ? reap(cons[i].pid) :
			     pthread_join(cons[i].thread, NULL));
	}

	EXPECT_EQ(WRITES, sh->sum);
	EXPECT_EQ(0, sh->doubled);
	EXPECT_EQ(0, sh->wrong);
	want_rest(_metadata, sh, !variant->by_call);
}

/*
 * The same with a ring in which the consumers disturb each other on purpose:
 * each wants to start where it likes, so that slots are left unclaimed, and a
 * lap later are in the way.  Late, but never lost.
 */
static void *consume_anywhere(void *arg)
{
	struct consumer *c = arg;
	struct shared *sh = c->sh;
	struct kq q = sh->q;
	struct ukevent evs[BATCH] = { };
	int idle = 0;

	while (idle < IDLE_ROUNDS &&
	       __atomic_load_n(&sh->sum, __ATOMIC_RELAXED) < WRITES) {
		bool over = !__atomic_load_n(&sh->producing, __ATOMIC_ACQUIRE);
		int nr = kq_collect(&q, BY_RING, evs, 2);

		if (!nr)
			nr = kq_getevents(&q, evs, 1, BATCH, IDLE_MS);
		if (nr < 0) {
			count_wrong(sh);
			break;
		}
		idle = nr || !over ? 0 : idle + 1;
		for (int i = 0; i < nr; i++)
			__atomic_fetch_add(&sh->sum,
					   consume_source(evs[i].ident),
					   __ATOMIC_RELAXED);
		__atomic_fetch_add(&sh->claims, nr, __ATOMIC_RELAXED);
		/* Not where it has been; the slots left out become stuck. */
		q.map.cursor += evs[0].user_data % 3;
	}
	end_all(sh);
	return NULL;
}

FIXTURE(skipping) {
	struct shared *sh;
};

FIXTURE_VARIANT(skipping) {
	int producers;
	bool sockets;
};

FIXTURE_VARIANT_ADD(skipping, one_producer) { 1, false };
FIXTURE_VARIANT_ADD(skipping, two_producers) { 2, false };
FIXTURE_VARIANT_ADD(skipping, four_producers) { 4, false };
FIXTURE_VARIANT_ADD(skipping, two_producers_to_sockets) { 2, true };

FIXTURE_SETUP(skipping)
{
	self->sh = open_shared(_metadata, variant->producers, variant->sockets);
}

FIXTURE_TEARDOWN(skipping)
{
	kq_close(&self->sh->q);
}

TEST_F_TIMEOUT(skipping, consumers_lose_nothing, 60)
{
	struct consumer cons[2];
	struct shared *sh = self->sh;

	for (int i = 0; i < 2; i++) {
		cons[i].sh = sh;
		ASSERT_EQ(0, pthread_create(&cons[i].thread, NULL,
					    consume_anywhere, &cons[i]));
	}
	ASSERT_EQ(0, run_producers(sh));
	for (int i = 0; i < 2; i++)
		pthread_join(cons[i].thread, NULL);
	EXPECT_EQ(WRITES, sh->sum);
	EXPECT_EQ(0, sh->wrong);
	want_rest(_metadata, sh, false);
}

TEST_HARNESS_MAIN
