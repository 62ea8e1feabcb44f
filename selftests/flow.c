// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: flow control.  Which registrations get a slot, what waits behind a
 * full ring, and how the ring grows.  Nothing is lost, nothing comes twice, and
 * the order is kept.
 */
#include "kevent_util.h"

static bool overflows(const struct kq *q)
{
	return kevent_ring_flags(&q->map) & KEVENT_RING_OVERFLOW;
}

/* Slots of the consumer's set with an event that was cancelled, and not claimed */
static unsigned int cancelled_slots(const struct kq *q)
{
	unsigned int nr = 0;

	for (__u32 i = 0; i < q->map.nr_slots; i++) {
		__u64 word = kevent_slot_word(kevent_ring_slot(&q->map, i));

		nr += (word & KEVENT_WORD_READY) && !KEVENT_WORD_VALUE(word);
	}
	return nr;
}

/* And those with an event that was not claimed */
static unsigned int posted_slots(const struct kq *q)
{
	unsigned int nr = 0;

	for (__u32 i = 0; i < q->map.nr_slots; i++) {
		__u64 word = kevent_slot_word(kevent_ring_slot(&q->map, i));

		nr += (word & KEVENT_WORD_READY) && KEVENT_WORD_VALUE(word);
	}
	return nr;
}

/* User events have 100 and their number as user data. */
#define UDATA 100

static int add_count(const struct kq *q, __u64 ident, __u32 mode)
{
	return kq_add_user(q, ident, KEVENT_USER_COUNT, mode, UDATA + ident);
}

static int count(const struct kq *q, __u64 ident, __u64 n)
{
	return kq_trigger(q, ident, n, 0);
}

static void __want_count(struct __test_metadata *_metadata, int line,
			 struct kq *q, enum collect_by by, __u64 ident, __u32 n)
{
	__want_value(_metadata, line, q, by, KEVENT_SOURCE_USER, ident, n,
		     UDATA + ident);
}

#define want_count(q, by, ident, n) \
	__want_count(_metadata, __LINE__, q, by, ident, n)

static int del_user(const struct kq *q, __u64 ident)
{
	return kq_op(q, KEVENT_SOURCE_USER, KEVENT_OP_DEL, ident, 0);
}

/*
 * Slots are reserved.  Whatever is added, deleted, triggered and claimed, in
 * whatever order, an addition fails if and only if live registrations and
 * cancelled slots are as many as the slots; and the ring never overflows.  Only
 * modifications, and what is disabled and enabled again, can make events wait,
 * until the ring is drained.
 */

#define SOURCES		12
#define STEPS		6000
#define STEPS_PER_PHASE	100

/*
 * A queue, and what it has to know.  Sources with an odd number are eventfds,
 * the others user events.
 */
struct model {
	struct kq q;
	enum collect_by by;
	int fd[SOURCES];
	bool live[SOURCES];
	bool one_shot[SOURCES];
	bool readable[SOURCES];
	__u64 udata[SOURCES];
	__u64 last_udata;
	bool disabled[SOURCES];
	__u32 held[SOURCES];	/* what was counted while disabled */
	__u32 value[SOURCES];	/* of the unclaimed event, zero if there is none */
	int order[SOURCES];	/* of the unclaimed events */
	int pending;		/* how many there are */
};

FIXTURE(reserved) {
	struct model m;
};

FIXTURE_VARIANT(reserved) {
	unsigned int slots;
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(reserved, slot_by_ring) { 1, BY_RING };
FIXTURE_VARIANT_ADD(reserved, slot_by_call) { 1, BY_SYSCALL };
FIXTURE_VARIANT_ADD(reserved, two_slots_by_ring) { 2, BY_RING };
FIXTURE_VARIANT_ADD(reserved, two_slots_by_call) { 2, BY_SYSCALL };
FIXTURE_VARIANT_ADD(reserved, eight_slots_by_ring) { 8, BY_RING };
FIXTURE_VARIANT_ADD(reserved, eight_slots_by_call) { 8, BY_SYSCALL };

FIXTURE_SETUP(reserved)
{
	self->m.by = variant->by;
	if (!kq_setup(_metadata, &self->m.q, variant->slots))
		return;
	for (int i = 1; i < SOURCES; i += 2) {
		self->m.fd[i] = open_eventfd();
		ASSERT_LE(0, self->m.fd[i]);
	}
}

FIXTURE_TEARDOWN(reserved)
{
	kq_close(&self->m.q);
}

static bool is_fd(int i)
{
	return i % 2;
}

static unsigned int model_live(const struct model *m)
{
	unsigned int nr = 0;

	for (int i = 0; i < SOURCES; i++)
		nr += m->live[i];
	return nr;
}

static void model_post(struct model *m, int i, __u32 value)
{
	if (m->disabled[i]) {
		m->held[i] += is_fd(i) ? 0 : value;
		return;
	}
	if (!m->value[i])
		m->order[m->pending++] = i;
	m->value[i] = is_fd(i) ? value : m->value[i] + value;
}

static void model_forget(struct model *m, int i)
{
	int to = 0;

	for (int from = 0; from < m->pending; from++)
		if (m->order[from] != i)
			m->order[to++] = m->order[from];
	m->pending = to;
	m->value[i] = 0;
}

static void model_add(struct __test_metadata *_metadata, struct model *m, int i,
		      bool one_shot)
{
	unsigned int taken = model_live(m) + cancelled_slots(&m->q);
	__u32 mode = one_shot ? KEVENT_ONESHOT : 0;
	__u64 udata = ++m->last_udata;
	int want = 1, ret;

	if (m->live[i])
		want = -EEXIST;
	else if (taken >= m->q.map.nr_slots)
		want = -ENOSPC;

	if (is_fd(i))
		ret = kq_add_mode(&m->q, m->fd[i], EPOLLIN, KEVENT_EDGE | mode,
				  udata);
	else
		ret = kq_add_user(&m->q, i, KEVENT_USER_COUNT, mode, udata);
	ASSERT_EQ(want, ret)
		TH_LOG("source %d: %u of %u slots taken", i, taken,
		       m->q.map.nr_slots);
	if (ret != 1)
		return;
	m->live[i] = true;
	m->one_shot[i] = one_shot;
	m->disabled[i] = false;
	m->held[i] = 0;
	m->udata[i] = udata;
	if (m->readable[i])
		model_post(m, i, EPOLLIN);
}

/* What is so, or was counted, comes anew, with the new user data. */
static void model_mod(struct __test_metadata *_metadata, struct model *m, int i,
		      bool one_shot)
{
	__u32 mode = one_shot ? KEVENT_ONESHOT : 0;
	__u64 udata = ++m->last_udata;
	__u32 value;
	int ret;

	if (is_fd(i))
		ret = kq_mod_mode(&m->q, m->fd[i], EPOLLIN, KEVENT_EDGE | mode,
				  udata);
	else
		ret = kq_apply(&m->q, kq_user_change(KEVENT_OP_MOD, i,
						     KEVENT_USER_COUNT, mode,
						     udata));
	ASSERT_EQ(m->live[i] ? 1 : -ENOENT, ret)
		TH_LOG("source %d", i);
	if (ret != 1)
		return;
	if (is_fd(i))
		value = m->readable[i] ? EPOLLIN : 0;
	else
		value = m->disabled[i] ? m->held[i] : m->value[i];
	model_forget(m, i);
	m->one_shot[i] = one_shot;
	m->disabled[i] = false;
	m->held[i] = 0;
	m->udata[i] = udata;
	if (value)
		model_post(m, i, value);
}

static int model_op(const struct model *m, __u16 op, int i)
{
	if (is_fd(i))
		return kq_op(&m->q, KEVENT_SOURCE_FD, op, m->fd[i], 0);
	return kq_op(&m->q, KEVENT_SOURCE_USER, op, i, 0);
}

static void model_disable(struct __test_metadata *_metadata, struct model *m, int i)
{
	ASSERT_EQ(m->live[i] ? 1 : -ENOENT, model_op(m, KEVENT_OP_DISABLE, i))
		TH_LOG("source %d", i);
	if (!m->live[i])
		return;
	if (!is_fd(i))
		m->held[i] += m->value[i];
	model_forget(m, i);
	m->disabled[i] = true;
}

/* One that is enabled already is looked at, too. */
static void model_enable(struct __test_metadata *_metadata, struct model *m, int i)
{
	__u32 value = m->held[i];

	ASSERT_EQ(m->live[i] ? 1 : -ENOENT, model_op(m, KEVENT_OP_ENABLE, i))
		TH_LOG("source %d", i);
	if (!m->live[i])
		return;
	if (is_fd(i) && m->readable[i])
		value = EPOLLIN;
	m->disabled[i] = false;
	m->held[i] = 0;
	if (value)
		model_post(m, i, value);
}

static void model_del(struct __test_metadata *_metadata, struct model *m, int i,
		      bool drain)
{
	int ret = is_fd(i) ? kq_del(&m->q, m->fd[i]) : del_user(&m->q, i);

	ASSERT_EQ(m->live[i] ? 1 : -ENOENT, ret)
		TH_LOG("source %d", i);
	m->live[i] = false;
	model_forget(m, i);
	if (is_fd(i) && drain) {
		drain_eventfd(m->fd[i]);
		m->readable[i] = false;
	}
}

static void model_trigger(struct __test_metadata *_metadata, struct model *m, int i,
			  __u32 n)
{
	if (is_fd(i)) {
		signal_eventfd(m->fd[i]);
		m->readable[i] = true;
		n = EPOLLIN;
	} else {
		ASSERT_EQ(m->live[i] ? 1 : -ENOENT, count(&m->q, i, n))
			TH_LOG("source %d", i);
	}
	if (m->live[i])
		model_post(m, i, n);
}

static void model_claim(struct __test_metadata *_metadata, struct model *m)
{
	int nr, i = m->order[0];
	struct ukevent ev;

	nr = kq_collect(&m->q, m->by, &ev, 1);
	/* Who finds the ring empty looks at the flag, and calls. */
	if (!nr && m->by == BY_RING && overflows(&m->q)) {
		ASSERT_EQ(0, kq_let_in(&m->q));
		nr = kq_collect(&m->q, m->by, &ev, 1);
	}
	ASSERT_EQ(m->pending ? 1 : 0, nr);
	if (!nr)
		return;
	ASSERT_EQ(m->udata[i], ev.user_data)
		TH_LOG("of source %d", i);
	ASSERT_EQ(m->value[i], ev.events)
		TH_LOG("of source %d", i);
	model_forget(m, i);
	if (m->one_shot[i])
		m->live[i] = false;
}

/*
 * Counting the events claims nothing, be it a cancelled slot.  If it did, a
 * consumer of the ring would not know, and find a later event there; or the slot
 * would be given away while the next to be used still holds an event.
 */
static void model_count(struct __test_metadata *_metadata, struct model *m,
			unsigned int limit)
{
	struct pollfd pfd = { .fd = m->q.fd, .events = POLLIN };
	int nr = m->pending < limit ? m->pending : limit;

	ASSERT_EQ(nr, kq_getevents(&m->q, NULL, limit, 0, 0));
	ASSERT_EQ(m->pending ? 1 : 0, poll(&pfd, 1, 0));
}

/* Claims all, and what was cancelled: nothing is left that could be in the way. */
static void model_drain(struct __test_metadata *_metadata, struct model *m)
{
	while (m->pending)
		model_claim(_metadata, m);
	model_claim(_metadata, m);
	ASSERT_EQ(0, kq_let_in(&m->q));
	ASSERT_EQ(0, kevent_ring_flags(&m->q.map));
	ASSERT_EQ(0, cancelled_slots(&m->q));
}

/* @anew: with operations that take an event back and report it anew */
static void model_step(struct __test_metadata *_metadata, struct model *m,
		       bool anew, __u64 rnd)
{
	int i = rnd % SOURCES;

	rnd >>= 8;
	switch (rnd % (anew ? 14 : 10)) {
	case 0:
	case 1:
		model_add(_metadata, m, i, rnd >> 8 & 1);
		break;
	case 2:
		model_del(_metadata, m, i, rnd >> 8 & 1);
		break;
	case 3:
		for (int n = (rnd >> 8) % 4; n >= 0; n--)
			model_claim(_metadata, m);
		break;
	case 4:
		model_count(_metadata, m, (rnd >> 8) % (SOURCES + 1));
		break;
	case 10:
	case 11:
		model_mod(_metadata, m, i, rnd >> 8 & 1);
		break;
	case 12:
		model_disable(_metadata, m, i);
		break;
	case 13:
		model_enable(_metadata, m, i);
		break;
	default:
		model_trigger(_metadata, m, i, 1 + (rnd >> 8) % 5);
	}
}

TEST_F_TIMEOUT(reserved, never_overflows_and_is_full_when_it_should_be, 60)
{
	struct model *m = &self->m;
	__u64 seed = random_seed();
	int waited = 0;

	/* In one of a hundred runs no event has waited by then. */
	for (int step = 0; step < STEPS || (!waited && step < 100 * STEPS);
	     step++) {
		bool anew = step / STEPS_PER_PHASE % 2;
		bool waits;

		if (step % STEPS_PER_PHASE == 0)
			model_drain(_metadata, m);
		model_step(_metadata, m, anew, next_random(&seed) >> 16);
		waits = m->pending > posted_slots(&m->q);
		ASSERT_EQ(waits ? KEVENT_RING_OVERFLOW : 0,
			  kevent_ring_flags(&m->q.map))
			TH_LOG("step %d", step);
		waited += waits;
		if (anew)
			continue;
		ASSERT_FALSE(waits)
			TH_LOG("step %d", step);
		ASSERT_GE(variant->slots, model_live(m) + cancelled_slots(&m->q))
			TH_LOG("step %d", step);
	}
	model_drain(_metadata, m);
	/* It was about something. */
	EXPECT_LT(0, waited);
}

/*
 * The same with additions and deletions in several threads.  Those who collect
 * do it in order: one of them by the ring, or any number by the call.
 */

#define CHANGERS	2
#define OWN		6	/* sources of each */
#define CHANGES		4000	/* by each */

struct churn {
	struct kq q;
	int changing;
	int overflows;
	int wrong;
	int refused;
	int added;
	__u64 seed;
	/*
	 * Deletions are numbered.  The user data of a registration is an index
	 * here: which deletion ended it, zero if none has.
	 */
	__u32 deletions;
	__u32 ended_by[CHANGERS * CHANGES + 1];
};

struct churner {
	struct churn *ch;
	int number;
	pthread_t thread;
};

static void churn_wrong(struct churn *ch)
{
	__atomic_fetch_add(&ch->wrong, 1, __ATOMIC_RELAXED);
}

static void *churn_change(void *arg)
{
	struct churner *c = arg;
	struct churn *ch = c->ch;
	__u64 rnd = ch->seed + c->number;
	__u32 udata = c->number * CHANGES;
	__u32 live[OWN] = { };		/* user data */
	int fd[OWN] = { };

	for (int i = 1; i < OWN; i += 2)
		fd[i] = open_eventfd();
	for (int n = 0; n < CHANGES; n++) {
		unsigned int what = next_random(&rnd) >> 20;
		int i = what % OWN;
		__u64 ident = is_fd(i) ? fd[i] : c->number * OWN + i;
		int ret;

		/* On one CPU the collectors would get none. */
		if (n % 100 == 99)
			sleep_ms(1);

		switch (what / OWN % 4) {
		case 0:
			if (live[i])
				break;
			udata++;
			ret = is_fd(i) ?
				kq_add(&ch->q, fd[i], EPOLLIN, udata) :
				kq_add_user(&ch->q, ident, KEVENT_USER_COUNT, 0,
					    udata);
			if (ret == 1) {
				live[i] = udata;
				__atomic_fetch_add(&ch->added, 1,
						   __ATOMIC_RELAXED);
			} else if (ret == -ENOSPC) {
				__atomic_fetch_add(&ch->refused, 1,
						   __ATOMIC_RELAXED);
			} else {
				churn_wrong(ch);
			}
			break;
		case 1:
			ret = is_fd(i) ? kq_del(&ch->q, fd[i]) :
					 del_user(&ch->q, ident);
			if (ret != (live[i] ? 1 : -ENOENT))
				churn_wrong(ch);
			if (live[i])
				__atomic_store_n(&ch->ended_by[live[i]],
						 __atomic_add_fetch(&ch->deletions, 1,
								    __ATOMIC_SEQ_CST),
						 __ATOMIC_RELEASE);
			live[i] = 0;
			break;
		default:
			if (is_fd(i))
				signal_eventfd(fd[i]);
			else if (count(&ch->q, ident, 1) !=
				 (live[i] ? 1 : -ENOENT))
				churn_wrong(ch);
		}
		if (overflows(&ch->q))
			__atomic_fetch_add(&ch->overflows, 1, __ATOMIC_RELAXED);
		/* Let others collect, and find the slots free. */
		if (n % 16 == 15)
			sched_yield();
	}
	__atomic_fetch_sub(&ch->changing, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void churn_collect(struct churn *ch, enum collect_by by)
{
	struct kq q = ch->q;	/* with a cursor of its own */
	bool over;

	do {
		__u32 before;
		struct ukevent ev;
		int nr;

		over = !__atomic_load_n(&ch->changing, __ATOMIC_ACQUIRE);
		do {
			before = __atomic_load_n(&ch->deletions,
						 __ATOMIC_SEQ_CST);
			nr = kq_collect(&q, by, &ev, 1);
			if (nr <= 0)
				break;
			if (ev.user_data >= ARRAY_SIZE(ch->ended_by)) {
				churn_wrong(ch);
				continue;
			}

			__u32 end = __atomic_load_n(&ch->ended_by[ev.user_data],
						    __ATOMIC_ACQUIRE);

			/* The deletion had returned before the claim. */
			if (end && end <= before)
				churn_wrong(ch);
		} while (1);
		if (nr < 0)
			churn_wrong(ch);
		sched_yield();
	} while (!over);
}

static void *churn_collect_by_call(void *arg)
{
	churn_collect(((struct churner *)arg)->ch, BY_SYSCALL);
	return NULL;
}

static void *churn_collect_by_ring(void *arg)
{
	churn_collect(((struct churner *)arg)->ch, BY_RING);
	return NULL;
}

TEST_F_TIMEOUT(reserved, never_overflows_under_fire, 60)
{
	void *(*collect)(void *) = self->m.by == BY_RING ? churn_collect_by_ring :
							 churn_collect_by_call;
	int collectors = self->m.by == BY_RING ? 1 : 2;
	struct churner changers[CHANGERS], cons[2];
	struct churn *ch = calloc(1, sizeof(*ch));

	ASSERT_NE(NULL, ch);
	ch->q = self->m.q;
	ch->changing = CHANGERS;
	ch->seed = random_seed();
	for (int i = 0; i < collectors; i++) {
		cons[i].ch = ch;
		ASSERT_EQ(0, pthread_create(&cons[i].thread, NULL, collect,
					    &cons[i]));
	}
	for (int i = 0; i < CHANGERS; i++) {
		changers[i].ch = ch;
		changers[i].number = i;
		ASSERT_EQ(0, pthread_create(&changers[i].thread, NULL,
					    churn_change, &changers[i]));
	}
	for (int i = 0; i < CHANGERS; i++)
		pthread_join(changers[i].thread, NULL);
	for (int i = 0; i < collectors; i++)
		pthread_join(cons[i].thread, NULL);

	EXPECT_EQ(0, ch->overflows);
	EXPECT_EQ(0, ch->wrong);
	/* It was about something. */
	EXPECT_LT(0, ch->refused);
	EXPECT_LT(0, ch->added);
	free(ch);
}

TEST_F(reserved, slot_of_a_one_shot_comes_back_with_the_claim)
{
	__u32 slots = variant->slots;

	for (int lap = 0; lap < 3; lap++) {
		for (__u32 i = 0; i < slots; i++)
			ASSERT_EQ(1, add_count(&self->m.q, i, KEVENT_ONESHOT));
		EXPECT_EQ(-ENOSPC, add_count(&self->m.q, slots, KEVENT_ONESHOT));
		for (__u32 i = 0; i < slots; i++)
			ASSERT_EQ(1, count(&self->m.q, i, 1 + i));
		EXPECT_EQ(-ENOSPC, add_count(&self->m.q, slots, KEVENT_ONESHOT));
		want_count(&self->m.q, self->m.by, 0, 1);
		EXPECT_EQ(1, add_count(&self->m.q, slots, KEVENT_ONESHOT));
		EXPECT_EQ(-ENOSPC, add_count(&self->m.q, 0, KEVENT_ONESHOT));
		for (__u32 i = 1; i < slots; i++)
			want_count(&self->m.q, self->m.by, i, 1 + i);
		want_none(&self->m.q, self->m.by);
		/* All have ended but one. */
		for (__u32 i = 0; i < slots; i++)
			EXPECT_EQ(-ENOENT, del_user(&self->m.q, i));
		ASSERT_EQ(1, del_user(&self->m.q, slots));
	}
}

/* Who adds is not told of all that was claimed; it has to be found out. */
TEST_F(reserved, slots_come_back_however_many_were_claimed)
{
	enum { ALL = 4096, HALF = ALL / 2, BATCH = 256 };
	struct ukevent changes[BATCH];
	struct ukevent ev;
	struct kq q;
	int nr;

	if (variant->slots != 1)
		return;
	ASSERT_EQ(0, kq_open(&q, ALL));
	/* Events that were claimed, then ones that were cancelled */
	for (int i = 0; i < ALL; i += BATCH) {
		for (int n = 0; n < BATCH; n++)
			changes[n] = kq_user_change(KEVENT_OP_ADD, i + n,
						    KEVENT_USER_COUNT, 0, 0);
		ASSERT_EQ(BATCH, sys_kevent_ctl(q.fd, changes, BATCH, 0));
		for (int n = 0; n < BATCH; n++)
			changes[n] = kq_trigger_change(i + n, 1, 0);
		ASSERT_EQ(BATCH, sys_kevent_ctl(q.fd, changes, BATCH, 0));
		if (i < HALF)
			continue;
		for (int n = 0; n < BATCH; n++)
			changes[n] = kq_change(KEVENT_SOURCE_USER,
					       KEVENT_OP_DEL, i + n, 0);
		ASSERT_EQ(BATCH, sys_kevent_ctl(q.fd, changes, BATCH, 0));
	}
	EXPECT_EQ(-ENOSPC, add_count(&q, ALL, 0));
	for (nr = 0; kq_collect(&q, self->m.by, &ev, 1) == 1; nr++)
		;
	EXPECT_EQ(HALF, nr);
	EXPECT_EQ(0, cancelled_slots(&q));
	EXPECT_EQ(1, add_count(&q, ALL, 0));
	kq_close(&q);
}

/*
 * Overcommit: there can be more registrations than slots, and what finds the
 * ring full waits.
 */

#define WAITERS 12

/* User events 0 to WAITERS - 1 in a ring of few slots */
FIXTURE(overcommit) {
	struct kq q;
};

FIXTURE_VARIANT(overcommit) {
	unsigned int slots;
};

FIXTURE_VARIANT_ADD(overcommit, one_slot) { 1 };
FIXTURE_VARIANT_ADD(overcommit, four_slots) { 4 };

FIXTURE_SETUP(overcommit)
{
	if (!kq_setup_flags(_metadata, &self->q, variant->slots,
			    KEVENT_INIT_OVERCOMMIT))
		return;
	for (int i = 0; i < WAITERS; i++)
		ASSERT_EQ(1, add_count(&self->q, i, 0));
}

FIXTURE_TEARDOWN(overcommit)
{
	kq_close(&self->q);
}

/* Fills the ring with the first user events; the flag is not set by that. */
#define fill_ring() do {						\
	for (unsigned int __i = 0; __i < variant->slots; __i++)		\
		ASSERT_EQ(1, count(&self->q, __i, 1));			\
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));			\
} while (0)

TEST_F(overcommit, says_when_events_begin_and_cease_to_wait)
{
	const int slots = variant->slots;

	for (int lap = 0; lap < 3; lap++) {
		fill_ring();
		ASSERT_EQ(1, count(&self->q, slots, 7));
		EXPECT_EQ(KEVENT_RING_OVERFLOW,
			  kevent_ring_flags(&self->q.map));
		for (int i = 0; i < slots; i++)
			want_count(&self->q, BY_RING, i, 1);
		/* There is room, but nobody has looked. */
		want_none(&self->q, BY_RING);
		EXPECT_EQ(KEVENT_RING_OVERFLOW,
			  kevent_ring_flags(&self->q.map));
		EXPECT_EQ(0, kq_let_in(&self->q));
		EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
		want_count(&self->q, BY_RING, slots, 7);
		want_none(&self->q, BY_RING);
	}
}

TEST_F(overcommit, counts_into_what_waits)
{
	const int slots = variant->slots;

	fill_ring();
	for (int i = slots; i < slots + 3; i++)
		ASSERT_EQ(1, count(&self->q, i, 10 * i));
	/* That changes neither its place nor that of others. */
	for (int n = 0; n < 3; n++)
		ASSERT_EQ(1, count(&self->q, slots + 2, 1));
	ASSERT_EQ(1, count(&self->q, slots, 5));
	for (int i = 0; i < slots; i++)
		want_count(&self->q, BY_SYSCALL, i, 1);
	want_count(&self->q, BY_SYSCALL, slots, 10 * slots + 5);
	want_count(&self->q, BY_SYSCALL, slots + 1, 10 * (slots + 1));
	want_count(&self->q, BY_SYSCALL, slots + 2, 10 * (slots + 2) + 3);
	want_none(&self->q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
}

/* Later events let earlier ones in; nobody makes a call to collect. */
TEST_F(overcommit, later_traffic_lets_in_what_waits)
{
	const int slots = variant->slots;
	int next = slots + 1;
	int last = slots;

	fill_ring();
	ASSERT_EQ(1, count(&self->q, slots, 1));
	for (int i = 0; i < slots; i++)
		want_count(&self->q, BY_RING, i, 1);
	for (int lap = 0; lap < 5 * WAITERS; lap++) {
		struct ukevent ev;
		int nr = 0;

		/* What has come already is idle, so it can come again. */
		ASSERT_EQ(1, count(&self->q, next % WAITERS, 1));
		next++;
		while (kq_collect(&self->q, BY_RING, &ev, 1)) {
			EXPECT_EQ(last % WAITERS, ev.ident);
			last++;
			nr++;
		}
		EXPECT_LT(0, nr)
			TH_LOG("nothing was let in by event %d", next - 1);
		/* With more than one slot, the new one got in, too. */
		if (slots > 1) {
			EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
			EXPECT_EQ(next, last);
		}
	}
	if (slots == 1) {
		EXPECT_EQ(KEVENT_RING_OVERFLOW,
			  kevent_ring_flags(&self->q.map));
		want_count(&self->q, BY_SYSCALL, last % WAITERS, 1);
	}
	want_none(&self->q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
}

/* So does what is only added to an event that waits. */
TEST_F(overcommit, merging_into_what_waits_lets_in_what_waits)
{
	const int slots = variant->slots;

	fill_ring();
	ASSERT_EQ(1, count(&self->q, slots, 3));
	ASSERT_EQ(1, count(&self->q, slots + 1, 5));
	for (int i = 0; i < slots; i++)
		want_count(&self->q, BY_RING, i, 1);
	want_none(&self->q, BY_RING);
	EXPECT_EQ(KEVENT_RING_OVERFLOW, kevent_ring_flags(&self->q.map));

	ASSERT_EQ(1, count(&self->q, slots + 1, 7));
	if (slots > 1) {
		EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
		want_count(&self->q, BY_RING, slots, 3);
		want_count(&self->q, BY_RING, slots + 1, 12);
	} else {
		/* There is room for the first only. */
		EXPECT_EQ(KEVENT_RING_OVERFLOW,
			  kevent_ring_flags(&self->q.map));
		want_count(&self->q, BY_RING, slots, 3);
		want_none(&self->q, BY_RING);
		ASSERT_EQ(1, count(&self->q, slots + 1, 1));
		EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
		want_count(&self->q, BY_RING, slots + 1, 13);
	}
	want_none(&self->q, BY_RING);
	want_none(&self->q, BY_SYSCALL);
}

/* No event overtakes one that waits, even if there is room. */
TEST_F(overcommit, later_traffic_keeps_the_order)
{
	const int slots = variant->slots;
	int last = slots, next;

	fill_ring();
	for (next = slots; next < WAITERS - 1; next++)
		ASSERT_EQ(1, count(&self->q, next, 1));
	for (int i = 0; i < slots; i++)
		want_count(&self->q, BY_RING, i, 1);
	for (int lap = 0; lap < 5 * WAITERS; lap++) {
		struct ukevent ev;

		/* Merged, if it waits still; it then keeps its place. */
		if (next < last + WAITERS) {
			ASSERT_EQ(1, count(&self->q, next % WAITERS, 1));
			next++;
		}
		if (kq_collect(&self->q, BY_RING, &ev, 1)) {
			ASSERT_EQ(last % WAITERS, ev.ident);
			last++;
		}
	}
	EXPECT_LT(slots + WAITERS, last);
	for (; last < next; last++)
		want_count(&self->q, BY_SYSCALL, last % WAITERS, 1);
	want_none(&self->q, BY_SYSCALL);
}

/* Each way to call finds what waits, and none needs to be called twice. */
TEST_F(overcommit, every_call_lets_in_what_waits)
{
	const int slots = variant->slots;
	struct ukevent ev;

	for (int way = 0; way < 4; way++) {
		fill_ring();
		ASSERT_EQ(1, count(&self->q, slots, 7));
		ASSERT_TRUE(overflows(&self->q));
		for (int i = 0; i < slots; i++)
			want_count(&self->q, BY_RING, i, 1);
		switch (way) {
		case 0:
			EXPECT_EQ(0, kq_let_in(&self->q));
			break;
		case 1:
			EXPECT_EQ(1, kq_getevents(&self->q, NULL, 1, 0, 0));
			break;
		case 2:
			EXPECT_EQ(1, kq_getevents(&self->q, NULL, 1, 0,
						  PATIENCE_MS));
			break;
		case 3:
			EXPECT_EQ(1, kq_getevents(&self->q, &ev, 0, 1, 0));
			EXPECT_EQ(slots, ev.ident);
			EXPECT_EQ(7, ev.events);
			EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
			want_none(&self->q, BY_RING);
			continue;
		}
		EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
		want_count(&self->q, BY_RING, slots, 7);
		want_none(&self->q, BY_SYSCALL);
	}
}

TEST_F(overcommit, what_waits_counts_for_who_waits)
{
	struct ukevent evs[WAITERS];

	for (int i = 0; i < WAITERS; i++)
		ASSERT_EQ(1, count(&self->q, i, 1));
	EXPECT_EQ(1, kq_getevents(&self->q, NULL, 1, 0, 0));
	EXPECT_EQ(WAITERS - 1, kq_getevents(&self->q, NULL, WAITERS - 1, 0, 0));
	EXPECT_EQ(WAITERS, kq_getevents(&self->q, NULL, WAITERS, 0,
					PATIENCE_MS));
	/* More than there are, and more than slots: it is no error. */
	EXPECT_EQ(WAITERS, kq_getevents(&self->q, NULL, 100, 0, 0));
	ASSERT_EQ(WAITERS, kq_getevents(&self->q, evs, WAITERS, WAITERS,
					PATIENCE_MS));
	for (int i = 0; i < WAITERS; i++)
		EXPECT_EQ(i, evs[i].ident);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
}

TEST_F(overcommit, what_waits_wakes_who_waits_for_more)
{
	struct waiter w = { }, only = { .wait_only = true };

	ASSERT_EQ(0, waiter_start(&w, &self->q, WAITERS, WAITERS));
	ASSERT_EQ(0, waiter_start(&only, &self->q, WAITERS, 0));
	for (int i = 0; i < WAITERS - 1; i++)
		ASSERT_EQ(1, count(&self->q, i, 1));
	/* Merged: not one more */
	ASSERT_EQ(1, count(&self->q, 0, 1));
	ASSERT_EQ(1, count(&self->q, WAITERS - 2, 1));
	sleep_ms(SETTLE_MS);
	EXPECT_FALSE(waiter_done(&w));
	EXPECT_FALSE(waiter_done(&only));
	ASSERT_EQ(1, count(&self->q, WAITERS - 1, 1));
	ASSERT_TRUE(waiter_join(&w));
	ASSERT_EQ(WAITERS, w.ret);
	for (int i = 0; i < WAITERS; i++)
		EXPECT_EQ(i, w.evs[i].ident);
	/* Whoever is first takes all. */
	if (!waiter_done(&only))
		for (int i = 0; i < WAITERS; i++)
			ASSERT_EQ(1, count(&self->q, i, 1));
	ASSERT_TRUE(waiter_join(&only));
	EXPECT_EQ(WAITERS, only.ret);
}

TEST_F(overcommit, deletion_takes_the_event_that_waits)
{
	const int slots = variant->slots;

	fill_ring();
	for (int i = slots; i < slots + 4; i++)
		ASSERT_EQ(1, count(&self->q, i, 1));
	ASSERT_EQ(1, del_user(&self->q, slots + 1));
	ASSERT_EQ(1, del_user(&self->q, slots + 3));
	EXPECT_TRUE(overflows(&self->q));
	for (int i = 0; i <= slots; i++)
		want_count(&self->q, BY_SYSCALL, i, 1);
	want_count(&self->q, BY_SYSCALL, slots + 2, 1);
	want_none(&self->q, BY_SYSCALL);
	want_none(&self->q, BY_RING);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	/* And it comes anew like any other. */
	ASSERT_EQ(1, add_count(&self->q, slots + 1, 0));
	want_none(&self->q, BY_SYSCALL);
	ASSERT_EQ(1, count(&self->q, slots + 1, 3));
	want_count(&self->q, BY_SYSCALL, slots + 1, 3);
}

TEST_F(overcommit, deletion_of_the_last_that_waits_clears_the_flag)
{
	const int slots = variant->slots;

	fill_ring();
	for (int i = slots; i < slots + 2; i++)
		ASSERT_EQ(1, count(&self->q, i, 1));
	ASSERT_EQ(1, del_user(&self->q, slots));
	EXPECT_TRUE(overflows(&self->q));
	ASSERT_EQ(1, del_user(&self->q, slots + 1));
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	for (int i = 0; i < slots; i++)
		want_count(&self->q, BY_RING, i, 1);
	want_none(&self->q, BY_SYSCALL);
}

TEST_F(overcommit, disabling_takes_back_the_event_that_waits)
{
	const int slots = variant->slots;

	fill_ring();
	for (int i = slots; i < slots + 3; i++)
		ASSERT_EQ(1, count(&self->q, i, 5));
	ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_USER, KEVENT_OP_DISABLE,
			   slots + 1, 0));
	/* Counts go on. */
	ASSERT_EQ(1, count(&self->q, slots + 1, 2));
	for (int i = 0; i < slots; i++)
		want_count(&self->q, BY_SYSCALL, i, 1);
	want_count(&self->q, BY_SYSCALL, slots, 5);
	want_count(&self->q, BY_SYSCALL, slots + 2, 5);
	want_none(&self->q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_USER, KEVENT_OP_ENABLE,
			   slots + 1, 0));
	want_count(&self->q, BY_SYSCALL, slots + 1, 7);
	want_none(&self->q, BY_SYSCALL);
}

TEST_F(overcommit, disabling_the_last_that_waits_clears_the_flag)
{
	const int slots = variant->slots;

	fill_ring();
	ASSERT_EQ(1, count(&self->q, slots, 5));
	EXPECT_TRUE(overflows(&self->q));
	ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_USER, KEVENT_OP_DISABLE,
			   slots, 0));
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	/* What is enabled again finds the ring as full as before. */
	ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_USER, KEVENT_OP_ENABLE,
			   slots, 0));
	EXPECT_EQ(KEVENT_RING_OVERFLOW, kevent_ring_flags(&self->q.map));
	for (int i = 0; i < slots; i++)
		want_count(&self->q, BY_SYSCALL, i, 1);
	want_count(&self->q, BY_SYSCALL, slots, 5);
	want_none(&self->q, BY_SYSCALL);
}

/* Once modified, an event of the old terms must not come any more. */
TEST_F(overcommit, modification_replaces_the_event_that_waits)
{
	int fd[3];

	fill_ring();
	for (int i = 0; i < 3; i++) {
		fd[i] = open_eventfd();
		ASSERT_LE(0, fd[i]);
		ASSERT_EQ(1, kq_add(&self->q, fd[i], EPOLLIN, i));
		signal_eventfd(fd[i]);
	}
	ASSERT_TRUE(overflows(&self->q));
	ASSERT_EQ(1, kq_mod(&self->q, fd[1], EPOLLIN, 77));
	for (unsigned int i = 0; i < variant->slots; i++)
		want_count(&self->q, BY_SYSCALL, i, 1);

	unsigned int seen = 0;

	for (int i = 0; i < 3; i++) {
		struct ukevent ev;

		ASSERT_EQ(1, kq_next(&self->q, BY_SYSCALL, &ev));
		EXPECT_EQ(EPOLLIN, ev.events);
		for (int n = 0; n < 3; n++) {
			if (ev.ident != (__u64)fd[n])
				continue;
			EXPECT_EQ(n == 1 ? 77 : n, ev.user_data);
			seen |= 1U << n;
			/* The others keep their order. */
			EXPECT_TRUE(n != 2 || (seen & 1));
		}
	}
	EXPECT_EQ(7, seen);
	want_none(&self->q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
}

TEST_F(overcommit, modification_to_something_that_is_not_so_clears_the_flag)
{
	int fd = open_eventfd();

	fill_ring();
	ASSERT_EQ(1, kq_add(&self->q, fd, EPOLLIN, 1));
	signal_eventfd(fd);
	EXPECT_TRUE(overflows(&self->q));
	ASSERT_EQ(1, kq_mod(&self->q, fd, EPOLLPRI, 1));
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	for (unsigned int i = 0; i < variant->slots; i++)
		want_count(&self->q, BY_RING, i, 1);
	want_none(&self->q, BY_SYSCALL);
}

TEST_F(overcommit, close_takes_the_event_that_waits)
{
	int fd[2];

	fill_ring();
	for (int i = 0; i < 2; i++) {
		fd[i] = open_eventfd();
		ASSERT_EQ(1, kq_add(&self->q, fd[i], EPOLLIN, i));
		signal_eventfd(fd[i]);
	}
	close(fd[0]);
	EXPECT_TRUE(overflows(&self->q));
	for (unsigned int i = 0; i < variant->slots; i++)
		want_count(&self->q, BY_SYSCALL, i, 1);
	want_event(&self->q, BY_SYSCALL, fd[1], EPOLLIN, EPOLLIN, 1);
	want_none(&self->q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
}

TEST_F(overcommit, one_shot_that_waits_comes_once)
{
	const int slots = variant->slots;

	fill_ring();
	ASSERT_EQ(1, add_count(&self->q, 50, KEVENT_ONESHOT));
	ASSERT_EQ(1, add_count(&self->q, 51, KEVENT_DISPATCH));
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(1, count(&self->q, 50, 1));
		ASSERT_EQ(1, count(&self->q, 51, 1));
	}
	for (int i = 0; i < slots; i++)
		want_count(&self->q, BY_SYSCALL, i, 1);
	want_count(&self->q, BY_SYSCALL, 50, 3);
	want_count(&self->q, BY_SYSCALL, 51, 3);
	EXPECT_EQ(-ENOENT, count(&self->q, 50, 1));
	ASSERT_EQ(1, count(&self->q, 51, 1));
	want_none(&self->q, BY_SYSCALL);
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_USER, KEVENT_OP_ENABLE, 51,
			   0));
	want_count(&self->q, BY_SYSCALL, 51, 1);
}

/*
 * A ring of one slot and very many sources
 */

#define MANY	10000
#define BATCH	100	/* divides MANY */

struct many {
	struct kq q;
	int fd[MANY];
	bool gone[MANY];
	__u32 value[MANY];
};

FIXTURE(many) {
	struct many m;
};

FIXTURE_VARIANT(many) {
	bool eventfds;
	enum collect_by by;
};

FIXTURE_VARIANT_ADD(many, user_events_by_ring) { false, BY_RING };
FIXTURE_VARIANT_ADD(many, user_events_by_call) { false, BY_SYSCALL };
FIXTURE_VARIANT_ADD(many, eventfds_by_ring) { true, BY_RING };
FIXTURE_VARIANT_ADD(many, eventfds_by_call) { true, BY_SYSCALL };

static __u64 many_ident(const struct many *m, int i)
{
	return m->fd[i] ? m->fd[i] : i;
}

FIXTURE_SETUP(many)
{
	struct ukevent changes[BATCH];
	struct rlimit lim;

	if (!kq_setup_flags(_metadata, &self->m.q, 1, KEVENT_INIT_OVERCOMMIT))
		return;
	if (variant->eventfds) {
		ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &lim));
		if (lim.rlim_cur < MANY + 100) {
			lim.rlim_cur = MANY + 100;
			if (lim.rlim_max < lim.rlim_cur)
				lim.rlim_max = lim.rlim_cur;
			if (setrlimit(RLIMIT_NOFILE, &lim))
				SKIP(return, "cannot open %d files", MANY);
		}
	}
	for (int i = 0; i < MANY; i += BATCH) {
		for (int n = 0; n < BATCH; n++) {
			if (!variant->eventfds) {
				changes[n] = kq_user_change(KEVENT_OP_ADD,
							    i + n,
							    KEVENT_USER_COUNT,
							    0, i + n);
				continue;
			}
			self->m.fd[i + n] = open_eventfd();
			ASSERT_LT(0, self->m.fd[i + n]);
			changes[n] = kq_fd_change(KEVENT_OP_ADD,
						  self->m.fd[i + n], EPOLLIN,
						  i + n);
		}
		ASSERT_EQ(BATCH, sys_kevent_ctl(self->m.q.fd, changes, BATCH, 0));
	}
}

FIXTURE_TEARDOWN(many)
{
	kq_close(&self->m.q);
}

/* All sources, not in the order of their numbers: 7919 is a prime. */
static int many_nth(int n)
{
	return n * 7919LL % MANY;
}

static int trigger_many(struct many *m, bool eventfds, int step)
{
	struct ukevent changes[BATCH];
	int nr = 0;

	for (int n = 0; n < MANY; n += step) {
		int i = many_nth(n);

		if (eventfds) {
			signal_eventfd(m->fd[i]);
			m->value[i] = EPOLLIN;
			continue;
		}
		changes[nr++] = kq_trigger_change(i, 1, 0);
		m->value[i]++;
		if (nr == BATCH || n + step >= MANY) {
			if (sys_kevent_ctl(m->q.fd, changes, nr, 0) != nr)
				return -1;
			nr = 0;
		}
	}
	return 0;
}

/*
 * Collects everything in the way of a program that looks at the ring and calls
 * only if it says so, or only calls.
 */
static int collect_many(struct many *m, enum collect_by by,
			struct ukevent *evs)
{
	int nr = 0;

	for (;;) {
		int got = kq_collect(&m->q, by, evs + nr,
				     by == BY_RING ? 8 : 64);

		if (got < 0)
			return got;
		nr += got;
		if (got)
			continue;
		if (by == BY_SYSCALL || !overflows(&m->q))
			return nr;
		kq_let_in(&m->q);
	}
}

static void want_many(struct __test_metadata *_metadata, struct many *m,
		      enum collect_by by)
{
	struct ukevent *evs = calloc(MANY + 64, sizeof(*evs));
	int nr, at = 0;

	ASSERT_NE(NULL, evs);
	nr = collect_many(m, by, evs);
	for (int n = 0; n < MANY; n++) {
		int i = many_nth(n);

		if (m->gone[i])
			continue;
		ASSERT_LT(at, nr);
		ASSERT_EQ(i, evs[at].user_data)
			TH_LOG("event %d", at);
		ASSERT_EQ(many_ident(m, i), evs[at].ident);
		ASSERT_EQ(m->value[i], evs[at].events)
			TH_LOG("source %d", i);
		m->value[i] = 0;
		at++;
	}
	EXPECT_EQ(at, nr);
	EXPECT_EQ(0, kevent_ring_flags(&m->q.map));
	want_none(&m->q, BY_RING);
	want_none(&m->q, BY_SYSCALL);
	free(evs);
}

TEST_F_TIMEOUT(many, events_wait_for_one_slot_and_keep_their_order, 120)
{
	ASSERT_EQ(0, trigger_many(&self->m, variant->eventfds, 1));
	EXPECT_EQ(KEVENT_RING_OVERFLOW, kevent_ring_flags(&self->m.q.map));
	/* Some are merged. */
	ASSERT_EQ(0, trigger_many(&self->m, variant->eventfds, 10));
	want_many(_metadata, &self->m, variant->by);
}

TEST_F_TIMEOUT(many, events_wait_for_one_slot_while_others_are_deleted, 120)
{
	ASSERT_EQ(0, trigger_many(&self->m, variant->eventfds, 1));
	for (int i = 0; i < MANY; i++) {
		int ret;

		if (i % 3)
			continue;
		self->m.gone[i] = true;
		if (!variant->eventfds)
			ret = del_user(&self->m.q, i);
		else if (i % 2)
			ret = !close(self->m.fd[i]);
		else
			ret = kq_del(&self->m.q, self->m.fd[i]);
		ASSERT_EQ(1, ret);
	}
	want_many(_metadata, &self->m, variant->by);
}

/*
 * Growing
 */

#define GROW_IDENTS 8

/* User events 0 to GROW_IDENTS - 1 */
FIXTURE(grow) {
	struct kq q;
};

FIXTURE_SETUP(grow)
{
	if (!kq_setup(_metadata, &self->q, GROW_IDENTS))
		return;
	for (int i = 0; i < GROW_IDENTS; i++)
		ASSERT_EQ(1, add_count(&self->q, i, 0));
}

FIXTURE_TEARDOWN(grow)
{
	kq_close(&self->q);
}

static __u32 rings(const struct kq *q)
{
	return kevent_ring_rings(&q->map);
}

static __u32 header_slots(const struct kq *q)
{
	return __atomic_load_n(&q->map.ring->slots, __ATOMIC_ACQUIRE);
}

static __u32 header_incompat(const struct kq *q)
{
	return __atomic_load_n(&q->map.ring->incompat, __ATOMIC_ACQUIRE);
}

/* Maps a set of slots; NULL, and the error in errno, if that cannot be. */
static struct kevent_slot *map_set(const struct kq *q, __u32 nr_slots,
				   size_t more)
{
	size_t size = kevent_set_size(nr_slots, q->map.slot_size) + more;
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, q->fd,
		       KEVENT_OFF_SLOTS(nr_slots));

	return p == MAP_FAILED ? NULL : p;
}

static void unmap_set(const struct kq *q, void *set, __u32 nr_slots)
{
	munmap(set, kevent_set_size(nr_slots, q->map.slot_size));
}

static int try_map_set(const struct kq *q, __u32 nr_slots, size_t more)
{
	struct kevent_slot *set = map_set(q, nr_slots, more);

	if (!set)
		return -errno;
	munmap(set, kevent_set_size(nr_slots, q->map.slot_size) + more);
	return 0;
}

/*
 * Sets that were drained go some time after that, when somebody calls.  There
 * have to be some calls, not some time.
 */
static __u32 rings_at_rest(const struct kq *q, __u32 want)
{
	for (int i = 0; i < 1000 && rings(q) != want; i++)
		kq_getevents(q, NULL, 0, 0, 0);
	return rings(q);
}

TEST_F(grow, says_what_there_is)
{
	EXPECT_EQ(8, header_slots(&self->q));
	EXPECT_EQ(8, rings(&self->q));
	EXPECT_EQ(0, header_incompat(&self->q));

	/* An event keeps the old set. */
	ASSERT_EQ(1, count(&self->q, 0, 1));
	ASSERT_EQ(1, kq_grow(&self->q, 32));
	EXPECT_EQ(32, header_slots(&self->q));
	EXPECT_EQ(8 | 32, rings(&self->q));
	EXPECT_EQ(KEVENT_RING_INCOMPAT_GROWN, header_incompat(&self->q));
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	EXPECT_EQ(0, self->q.map.ring->compat);
	for (size_t i = 0; i < ARRAY_SIZE(self->q.map.ring->resv); i++)
		EXPECT_EQ(0, self->q.map.ring->resv[i]);
}

TEST_F(grow, rounds_up_to_a_power_of_two)
{
	ASSERT_EQ(1, kq_grow(&self->q, 9));
	EXPECT_EQ(16, header_slots(&self->q));
	ASSERT_EQ(1, kq_grow(&self->q, 100));
	EXPECT_EQ(128, header_slots(&self->q));
	ASSERT_EQ(1, kq_grow(&self->q, KEVENT_MAX_SLOTS - 1));
	EXPECT_EQ(KEVENT_MAX_SLOTS, header_slots(&self->q));
}

TEST_F(grow, is_refused_for_what_is_no_growth)
{
	static const __u64 bad[] = {
		0, 1, 2, 7, 8,
		KEVENT_MAX_SLOTS + 1, 2 * KEVENT_MAX_SLOTS,
		0x7fffffff, 0x80000000, 0xffffffff,
		0x100000000ULL, 0x100000010ULL, 1ULL << 63, ~0ULL,
	};

	ASSERT_EQ(1, count(&self->q, 3, 5));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, kq_grow(&self->q, bad[i]))
			TH_LOG("%llu slots", bad[i]);
	}
	EXPECT_EQ(8, header_slots(&self->q));
	EXPECT_EQ(8, rings(&self->q));
	EXPECT_EQ(0, header_incompat(&self->q));
	want_count(&self->q, BY_RING, 3, 5);

	ASSERT_EQ(1, kq_grow(&self->q, KEVENT_MAX_SLOTS));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		EXPECT_EQ(-EINVAL, kq_grow(&self->q, bad[i]));
	EXPECT_EQ(-EINVAL, kq_grow(&self->q, KEVENT_MAX_SLOTS));
	EXPECT_EQ(KEVENT_MAX_SLOTS, header_slots(&self->q));
}

TEST_F(grow, is_refused_with_fields_that_say_nothing)
{
	const struct ukevent good = {
		.source = KEVENT_SOURCE_QUEUE,
		.op = KEVENT_OP_GROW,
		.data = 64,
	};
	struct ukevent bad[11];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		bad[i] = good;
	bad[0].ident = 1;
	bad[1].tag = 1;
	bad[2].flags = KEVENT_EDGE;
	bad[3].events = 1;
	bad[4].user_data = 1;
	bad[5].fflags = 1;
	bad[6].interval = 1;
	bad[7].resv = 1;
	bad[8].source = KEVENT_SOURCE_USER;
	bad[9].source = KEVENT_SOURCE_FD;
	bad[10].source = KEVENT_SOURCE_TIMER;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad[i]))
			TH_LOG("number %zu", i);
	}
	for (unsigned int op = KEVENT_OP_ADD; op <= KEVENT_OP_MOVE; op++) {
		bad[0] = good;
		bad[0].op = op;
		EXPECT_EQ(-EINVAL, kq_apply(&self->q, bad[0]))
			TH_LOG("operation %u", op);
	}
	EXPECT_EQ(8, header_slots(&self->q));
	EXPECT_EQ(1, kq_apply(&self->q, good));
	EXPECT_EQ(64, header_slots(&self->q));
}

TEST_F(grow, maps_each_set_at_its_place)
{
	struct kevent_slot *old = (struct kevent_slot *)self->q.map.slots;
	const __u32 bits[] = { 1, 2, 4, 8, 16, 32, 64, 1024, KEVENT_MAX_SLOTS };
	size_t page = sysconf(_SC_PAGESIZE);
	struct kevent_slot *set;

	EXPECT_EQ(-EINVAL, try_map_set(&self->q, 32, 0));
	ASSERT_EQ(1, count(&self->q, 0, 1));
	ASSERT_EQ(1, kq_grow(&self->q, 32));
	ASSERT_EQ(1, count(&self->q, 1, 2));
	for (size_t i = 0; i < ARRAY_SIZE(bits); i++) {
		bool there = bits[i] == 8 || bits[i] == 32;

		EXPECT_EQ(there ? 0 : -EINVAL,
			  try_map_set(&self->q, bits[i], 0))
			TH_LOG("%u slots", bits[i]);
		EXPECT_EQ(-EINVAL, try_map_set(&self->q, bits[i], page))
			TH_LOG("%u slots and a page", bits[i]);
	}

	/* Both are the same memory for everybody. */
	set = map_set(&self->q, 8, 0);
	ASSERT_NE(NULL, set);
	EXPECT_EQ(kevent_slot_word(old), kevent_slot_word(set));
	EXPECT_EQ(0, set->ident);
	unmap_set(&self->q, set, 8);
	set = map_set(&self->q, 32, 0);
	ASSERT_NE(NULL, set);
	/* Positions begin with zero again, and so do generations. */
	EXPECT_EQ(2ULL << KEVENT_WORD_VALUE_SHIFT |
		  1ULL << KEVENT_WORD_GEN_SHIFT | KEVENT_WORD_READY,
		  kevent_slot_word(set));
	EXPECT_EQ(1, set->ident);
	EXPECT_EQ(UDATA + 1, set->user_data);
	for (int i = 1; i < 32; i++) {
		struct kevent_slot *slot = (void *)((unsigned char *)set +
						    i * self->q.map.slot_size);

		EXPECT_EQ(0, kevent_slot_word(slot));
	}
	unmap_set(&self->q, set, 32);
}

TEST_F(grow, leaves_what_is_in_the_old_set_where_it_is)
{
	struct ukevent ev;
	struct kq stays;

	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, count(&self->q, i, 1 + i));
	ASSERT_EQ(0, kq_attach(&stays, &self->q));
	ASSERT_EQ(1, kq_grow(&self->q, 16));
	for (int i = 3; i < 5; i++)
		ASSERT_EQ(1, count(&self->q, i, 1 + i));

	/* Somebody who stays with the old set finds the old events there. */
	for (int i = 0; i < 3; i++) {
		ASSERT_TRUE(kevent_set_claim(&stays.map, &ev));
		EXPECT_EQ(i, ev.ident);
		EXPECT_EQ(1 + i, ev.events);
	}
	for (int n = 0; n < 3; n++) {
		EXPECT_FALSE(kevent_set_claim(&stays.map, &ev));
		ASSERT_EQ(1, count(&self->q, 5 + n, 6 + n));
	}
	EXPECT_EQ(8, stays.map.nr_slots);

	for (int i = 3; i < 8; i++)
		want_count(&self->q, BY_RING, i, 1 + i);
	want_none(&self->q, BY_RING);
	EXPECT_EQ(16, self->q.map.nr_slots);
	/* The mapping of a set that is gone is still memory. */
	EXPECT_EQ(16, rings_at_rest(&self->q, 16));
	EXPECT_FALSE(kevent_set_claim(&stays.map, &ev));
	kq_unmap(&stays);
}

TEST_F(grow, takes_the_old_set_away_when_it_is_empty)
{
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, count(&self->q, i, 1));
	ASSERT_EQ(1, kq_grow(&self->q, 16));
	/* Not before; and a cancelled event is to be claimed, too. */
	ASSERT_EQ(1, del_user(&self->q, 2));
	for (int i = 0; i < 2; i++) {
		for (int n = 0; n < 5; n++)
			kq_getevents(&self->q, NULL, 0, 0, 0);
		EXPECT_EQ(8 | 16, rings(&self->q));
		want_count(&self->q, BY_RING, i, 1);
	}
	want_none(&self->q, BY_RING);
	EXPECT_EQ(16, rings_at_rest(&self->q, 16));
	EXPECT_EQ(-EINVAL, try_map_set(&self->q, 8, 0));
	EXPECT_EQ(0, try_map_set(&self->q, 16, 0));
	EXPECT_EQ(KEVENT_RING_INCOMPAT_GROWN, header_incompat(&self->q));
}

TEST_F(grow, takes_the_old_set_away_when_the_call_has_emptied_it)
{
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, count(&self->q, i, 1));
	ASSERT_EQ(1, kq_grow(&self->q, 16));
	ASSERT_EQ(1, count(&self->q, 3, 1));
	for (int i = 0; i < 4; i++)
		want_count(&self->q, BY_SYSCALL, i, 1);
	EXPECT_EQ(16, rings_at_rest(&self->q, 16));
	/* A consumer of the ring finds nothing there, and goes on. */
	ASSERT_EQ(1, count(&self->q, 4, 1));
	want_count(&self->q, BY_RING, 4, 1);
	EXPECT_EQ(16, self->q.map.nr_slots);
}

TEST_F(grow, adds_to_events_in_the_old_set)
{
	struct ukevent ev;
	struct kq stays;
	int s[2];

	ASSERT_EQ(0, sync_open(s));
	ASSERT_EQ(1, del_user(&self->q, 7));
	ASSERT_EQ(1, kq_add(&self->q, s[0], EPOLLIN | EPOLLOUT, 70));
	ASSERT_EQ(1, count(&self->q, 0, 3));
	ASSERT_EQ(0, kq_attach(&stays, &self->q));
	ASSERT_EQ(1, kq_grow(&self->q, 16));
	ASSERT_EQ(1, count(&self->q, 1, 1));
	ASSERT_EQ(1, count(&self->q, 0, 4));
	sync_post(s[1]);

	ASSERT_TRUE(kevent_set_claim(&stays.map, &ev));
	EXPECT_EQ(s[0], ev.ident);
	EXPECT_EQ(EPOLLIN | EPOLLOUT, ev.events);
	ASSERT_TRUE(kevent_set_claim(&stays.map, &ev));
	EXPECT_EQ(0, ev.ident);
	EXPECT_EQ(7, ev.events);
	EXPECT_FALSE(kevent_set_claim(&stays.map, &ev));
	/* From then on, into the new one */
	ASSERT_EQ(1, count(&self->q, 0, 5));
	EXPECT_FALSE(kevent_set_claim(&stays.map, &ev));
	want_count(&self->q, BY_RING, 1, 1);
	want_count(&self->q, BY_RING, 0, 5);
	want_none(&self->q, BY_RING);
	kq_unmap(&stays);
}

TEST_F(grow, cancels_events_in_the_old_set)
{
	int fd = open_eventfd();

	ASSERT_EQ(1, del_user(&self->q, 7));
	ASSERT_EQ(1, kq_add(&self->q, fd, EPOLLIN, 1));
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, count(&self->q, i, 1));
	signal_eventfd(fd);
	ASSERT_EQ(1, kq_grow(&self->q, 16));
	ASSERT_EQ(1, del_user(&self->q, 1));
	ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_USER, KEVENT_OP_DISABLE, 2,
			   0));
	ASSERT_EQ(1, kq_mod(&self->q, fd, EPOLLIN, 2));
	ASSERT_EQ(1, kq_op(&self->q, KEVENT_SOURCE_USER, KEVENT_OP_ENABLE, 2,
			   0));
	want_count(&self->q, BY_RING, 0, 1);
	want_event(&self->q, BY_RING, fd, EPOLLIN, EPOLLIN, 2);
	want_count(&self->q, BY_RING, 2, 1);
	want_none(&self->q, BY_RING);
}

TEST_F(grow, makes_room_for_registrations)
{
	/* All slots of the first set are taken by cancelled events. */
	for (int i = 0; i < GROW_IDENTS; i++) {
		ASSERT_EQ(1, count(&self->q, i, 1));
		ASSERT_EQ(1, del_user(&self->q, i));
	}
	EXPECT_EQ(-ENOSPC, add_count(&self->q, 0, 0));
	ASSERT_EQ(1, kq_grow(&self->q, 16));
	/* They take none of the new. */
	for (int i = 0; i < 16; i++) {
		ASSERT_EQ(1, add_count(&self->q, i, 0))
			TH_LOG("number %d", i);
	}
	EXPECT_EQ(-ENOSPC, add_count(&self->q, 16, 0));
	for (int i = 0; i < 16; i++)
		ASSERT_EQ(1, count(&self->q, i, 1));
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	for (int i = 0; i < 16; i++)
		want_count(&self->q, BY_RING, i, 1);
	want_none(&self->q, BY_RING);
}

/* Old events first, whoever collects */
TEST_F(grow, keeps_the_order_through_several_sets)
{
	struct kq late;

	for (int way = 0; way < 3; way++) {
		struct kq *by_whom = &self->q;
		__u32 first = 8 << (way * 4);

		for (int i = 0; i < 5; i++) {
			ASSERT_EQ(1, count(&self->q, i, 1 + i));
			if (i < 4)
				ASSERT_EQ(1, kq_grow(&self->q, first << (i + 1)));
		}
		EXPECT_EQ(first * 31, rings(&self->q));
		/* In a set that has nothing, there is nothing to wait for. */
		if (way == 2) {
			ASSERT_EQ(0, kq_attach(&late, &self->q));
			EXPECT_EQ(first, late.map.nr_slots);
			by_whom = &late;
		}
		for (int i = 0; i < 5; i++)
			want_count(by_whom, way == 0 ? BY_SYSCALL : BY_RING, i,
				   1 + i);
		want_none(by_whom, BY_RING);
		want_none(by_whom, BY_SYSCALL);
		EXPECT_EQ(first << 4, rings_at_rest(&self->q, first << 4));
		if (way == 2)
			kq_unmap(&late);
	}
	/* A consumer in a set that is long gone finds its way, too. */
	ASSERT_EQ(1, count(&self->q, 7, 7));
	want_count(&self->q, BY_RING, 7, 7);
	EXPECT_EQ(header_slots(&self->q), self->q.map.nr_slots);
}

/* Nobody who waits is disturbed, and what comes later wakes him. */
TEST_F(grow, leaves_waiters_waiting)
{
	struct waiter w = { }, only = { .wait_only = true };

	ASSERT_EQ(0, waiter_start(&w, &self->q, 2, 2));
	ASSERT_EQ(0, waiter_start(&only, &self->q, 2, 0));
	ASSERT_EQ(1, count(&self->q, 0, 1));
	ASSERT_EQ(1, kq_grow(&self->q, 16));
	sleep_ms(SETTLE_MS);
	EXPECT_FALSE(waiter_done(&w));
	EXPECT_FALSE(waiter_done(&only));
	/* One in the old set and one in the new are two. */
	ASSERT_EQ(1, count(&self->q, 1, 1));
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(2, w.ret);
	if (!waiter_done(&only)) {
		ASSERT_EQ(1, count(&self->q, 0, 1));
		ASSERT_EQ(1, count(&self->q, 1, 1));
	}
	ASSERT_TRUE(waiter_join(&only));
	EXPECT_EQ(2, only.ret);
}

/* A consumer skipped the first slot; a lap later it was in the way. */
TEST_F(grow, helps_a_ring_that_is_stuck)
{
	struct kq ahead = self->q;

	for (int i = 0; i < GROW_IDENTS; i++)
		ASSERT_EQ(1, count(&self->q, i, 1));
	ahead.map.cursor = 1;
	for (int i = 1; i < GROW_IDENTS; i++)
		want_count(&ahead, BY_RING, i, 1);
	for (int i = 1; i < 4; i++)
		ASSERT_EQ(1, count(&self->q, i, 2));
	ASSERT_EQ(KEVENT_RING_OVERFLOW, kevent_ring_flags(&self->q.map));

	ASSERT_EQ(1, kq_grow(&self->q, 16));
	EXPECT_EQ(0, kq_let_in(&self->q));
	EXPECT_EQ(0, kevent_ring_flags(&self->q.map));
	ASSERT_EQ(1, count(&self->q, 4, 2));
	want_count(&self->q, BY_RING, 0, 1);
	for (int i = 1; i < 5; i++)
		want_count(&self->q, BY_RING, i, 2);
	want_none(&self->q, BY_RING);
	want_none(&self->q, BY_SYSCALL);
}

TEST_F(grow, lets_in_what_waits)
{
	struct kq q;

	ASSERT_EQ(0, kq_open_flags(&q, 1, KEVENT_INIT_OVERCOMMIT, 0));
	for (int i = 0; i < 16; i++) {
		ASSERT_EQ(1, add_count(&q, i, 0));
		ASSERT_EQ(1, count(&q, i, 1));
	}
	EXPECT_TRUE(overflows(&q));
	/* The new set is too small, as well. */
	ASSERT_EQ(1, kq_grow(&q, 4));
	EXPECT_EQ(0, kq_let_in(&q));
	EXPECT_TRUE(overflows(&q));
	ASSERT_EQ(1, kq_grow(&q, 32));
	EXPECT_EQ(0, kq_let_in(&q));
	EXPECT_EQ(0, kevent_ring_flags(&q.map));
	for (int i = 0; i < 16; i++)
		ASSERT_EQ(1, count(&q, i, 2));
	for (int i = 0; i < 16; i++)
		want_count(&q, BY_RING, i, 3);
	want_none(&q, BY_RING);
	EXPECT_EQ(32, q.map.nr_slots);
	EXPECT_EQ(32, rings_at_rest(&q, 32));
	kq_close(&q);
}

TEST_F(grow, can_be_done_by_another_process)
{
	pid_t pid;

	ASSERT_EQ(1, count(&self->q, 0, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		struct kq mine;

		if (kq_grow(&self->q, 1024) != 1 ||
		    count(&self->q, 1, 2) != 1 ||
		    kq_attach(&mine, &self->q))
			_exit(1);
		_exit(rings(&mine) == (8 | 1024) ? 0 : 2);
	}
	EXPECT_EQ(0, reap(pid));
	EXPECT_EQ(1024, header_slots(&self->q));
	want_count(&self->q, BY_RING, 0, 1);
	want_count(&self->q, BY_RING, 1, 2);
	want_none(&self->q, BY_RING);
}

/* Each size is reached once, by whoever is first. */

#define GROWERS 4
#define LAST_BIT 10

struct race {
	const struct kq *q;
	int won[LAST_BIT + 1];
	int wrong;
	int growing;
};

static void *race_grow(void *arg)
{
	struct race *r = arg;

	for (int bit = 0; bit <= LAST_BIT; bit++) {
		int ret = kq_grow(r->q, 1U << bit);

		if (ret == 1)
			__atomic_fetch_add(&r->won[bit], 1, __ATOMIC_RELAXED);
		else if (ret != -EINVAL)
			__atomic_fetch_add(&r->wrong, 1, __ATOMIC_RELAXED);
	}
	__atomic_fetch_sub(&r->growing, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* Maps all sets, and looks at what it has mapped. */
static void *race_map(void *arg)
{
	struct race *r = arg;
	__u64 sum = 0;

	while (__atomic_load_n(&r->growing, __ATOMIC_ACQUIRE)) {
		for (int bit = 0; bit <= LAST_BIT; bit++) {
			struct kevent_slot *set = map_set(r->q, 1U << bit, 0);

			if (!set) {
				if (errno != EINVAL)
					__atomic_fetch_add(&r->wrong, 1,
							   __ATOMIC_RELAXED);
				continue;
			}
			/* Sets go away meanwhile; the memory stays. */
			kq_getevents(r->q, NULL, 0, 0, 0);
			sum += kevent_slot_word(set);
			unmap_set(r->q, set, 1U << bit);
		}
	}
	/* For the compiler */
	return (void *)(uintptr_t)(sum == 1);
}

TEST_F(grow, can_be_done_by_many_at_once)
{
	pthread_t growers[GROWERS], mapper;

	for (int round = 0; round < 10; round++) {
		struct race r = { .growing = GROWERS };
		struct kq q;
		int won = 0;

		ASSERT_EQ(0, kq_open(&q, 1));
		r.q = &q;
		ASSERT_EQ(0, pthread_create(&mapper, NULL, race_map, &r));
		for (int i = 0; i < GROWERS; i++)
			ASSERT_EQ(0, pthread_create(&growers[i], NULL,
						    race_grow, &r));
		for (int i = 0; i < GROWERS; i++)
			pthread_join(growers[i], NULL);
		pthread_join(mapper, NULL);
		EXPECT_EQ(0, r.wrong);
		EXPECT_EQ(0, r.won[0]);
		for (int bit = 1; bit <= LAST_BIT; bit++) {
			EXPECT_GE(1, r.won[bit])
				TH_LOG("%d slots", 1 << bit);
			won += r.won[bit];
		}
		EXPECT_LT(0, won);
		EXPECT_EQ(1, r.won[LAST_BIT]);
		EXPECT_EQ(1U << LAST_BIT, header_slots(&q));
		EXPECT_EQ(1U << LAST_BIT, rings_at_rest(&q, 1U << LAST_BIT));
		kq_close(&q);
	}
}

/*
 * Under fire: producers count and write, consumers add up what they are told,
 * and the ring grows meanwhile.
 */

#define FIRE_OPS	10000	/* of all producers together */
#define USERS		16
#define FDS		8
#define THREADS		3
#define FIRE_BATCH	4

/* No claim for so long, and there will be none. */
#define IDLE_MS		50
#define IDLE_ROUNDS	40

/* Shared memory, because consumers can be processes */
struct fire {
	struct kq q;
	int fd[FDS];
	__u64 seed;
	int producers;
	int producing;
	int ops;		/* done so far */
	int wrong;
	__u64 produced;
	__u64 consumed;
	__u64 counted[USERS];
	__u64 written[FDS];
	__u64 told[USERS];
	__u64 read[FDS];
};

enum fire_how {
	FOLLOW,		/* goes on to the larger sets as they come */
	REATTACH,	/* stays with its set, and then begins anew */
	CALL,
};

struct fire_thread {
	struct fire *f;
	enum fire_how how;
	int number;
	pthread_t thread;
	pid_t pid;
};

FIXTURE(fire) {
	struct fire *f;
};

FIXTURE_VARIANT(fire) {
	__u32 init_flags;
	__u32 slots;
	__u32 grow_to;		/* zero: the ring stays what it is */
	int producers;
	int consumers;
	enum fire_how how[THREADS];
	bool processes;		/* consumers are processes */
};

FIXTURE_VARIANT_ADD(fire, one_consumer_follows) {
	0, 32, 4096, 2, 1, { FOLLOW }, false
};

FIXTURE_VARIANT_ADD(fire, three_consumers_follow) {
	0, 32, 4096, 2, 3, { FOLLOW, FOLLOW, FOLLOW }, false
};

FIXTURE_VARIANT_ADD(fire, consumers_of_all_kinds) {
	0, 32, 4096, 3, 3, { FOLLOW, REATTACH, CALL }, false
};

FIXTURE_VARIANT_ADD(fire, consumers_are_processes) {
	0, 32, 4096, 2, 2, { FOLLOW, FOLLOW }, true
};

FIXTURE_VARIANT_ADD(fire, overcommitted_ring_grows) {
	KEVENT_INIT_OVERCOMMIT, 1, 512, 2, 3, { FOLLOW, FOLLOW, CALL }, false
};

FIXTURE_VARIANT_ADD(fire, overcommitted_ring_of_one_slot) {
	KEVENT_INIT_OVERCOMMIT, 1, 0, 2, 3, { FOLLOW, FOLLOW, CALL }, false
};

FIXTURE_VARIANT_ADD(fire, overcommitted_ring_with_one_consumer) {
	KEVENT_INIT_OVERCOMMIT, 2, 0, 3, 1, { FOLLOW }, false
};

FIXTURE_SETUP(fire)
{
	struct fire *f;

	f = mmap(NULL, sizeof(*f), PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, f);
	self->f = f;
	if (!kq_setup_flags(_metadata, &f->q, variant->slots,
			    variant->init_flags))
		return;
	for (int i = 0; i < USERS; i++)
		ASSERT_EQ(1, kq_add_user(&f->q, i, KEVENT_USER_COUNT, 0, i));
	for (int i = 0; i < FDS; i++) {
		f->fd[i] = open_eventfd();
		ASSERT_LE(0, f->fd[i]);
		ASSERT_EQ(1, kq_add(&f->q, f->fd[i], EPOLLIN, i));
	}
	f->producers = variant->producers;
	f->producing = variant->producers;
	f->seed = random_seed();
}

FIXTURE_TEARDOWN(fire)
{
	kq_close(&self->f->q);
}

static void fire_wrong(struct fire *f)
{
	__atomic_fetch_add(&f->wrong, 1, __ATOMIC_RELAXED);
}

static void fire_add(__u64 *sum, __u64 n)
{
	__atomic_fetch_add(sum, n, __ATOMIC_RELAXED);
}

static void *fire_produce(void *arg)
{
	struct fire_thread *t = arg;
	struct fire *f = t->f;
	__u64 rnd = f->seed + t->number;

	for (int i = 0; i < FIRE_OPS / f->producers; i++) {
		unsigned int what = next_random(&rnd) >> 20;
		__u64 n = 1 + (what >> 8) % 5;
		unsigned int s = what % (USERS + FDS);

		/* Before it can be told, so that nobody takes it for the end */
		fire_add(&f->produced, n);
		if (s < USERS) {
			fire_add(&f->counted[s], n);
			if (count(&f->q, s, n) != 1)
				fire_wrong(f);
		} else {
			s -= USERS;
			fire_add(&f->written[s], n);
			if (write(f->fd[s], &n, sizeof(n)) != sizeof(n))
				fire_wrong(f);
		}
		__atomic_fetch_add(&f->ops, 1, __ATOMIC_RELAXED);
	}
	__atomic_fetch_sub(&f->producing, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void fire_take(struct fire *f, const struct ukevent *ev)
{
	__u64 i = ev->user_data;
	__u64 n = 0;

	if (ev->source == KEVENT_SOURCE_USER && i < USERS && ev->ident == i &&
	    !ev->tag) {
		n = ev->events;
		fire_add(&f->told[i], n);
	} else if (ev->source == KEVENT_SOURCE_FD && i < FDS &&
		   ev->ident == (__u64)f->fd[i] &&
		   fd_value_ok(ev->events, EPOLLIN, EPOLLIN)) {
		__u64 val;

		while ((val = drain_eventfd(f->fd[i])))
			n += val;
		fire_add(&f->read[i], n);
	} else {
		fire_wrong(f);
	}
	fire_add(&f->consumed, n);
}

/* Claims a batch; if there is nothing, waits for a while. */
static int fire_collect(struct fire *f, struct kq *mine, enum fire_how how,
			struct ukevent *evs)
{
	int nr = 0;

	switch (how) {
	case FOLLOW:
		while (nr < FIRE_BATCH && kevent_ring_claim(&mine->map, &evs[nr]))
			nr++;
		break;
	case REATTACH:
		while (nr < FIRE_BATCH && kevent_set_claim(&mine->map, &evs[nr]))
			nr++;
		if (!nr) {
			kq_unmap(mine);
			if (kq_attach(mine, &f->q))
				return -1;
			/* That began at the beginning; it may be a lap late. */
			if (kevent_set_claim(&mine->map, &evs[nr]))
				nr++;
		}
		break;
	case CALL:
		return kq_getevents(mine, evs, 1, FIRE_BATCH, IDLE_MS);
	}
	kevent_ring_fence();
	if (!nr) {
		int ret = kq_getevents(mine, NULL, 1, 0, IDLE_MS);

		if (ret < 0 || ret > 1)
			return -1;
	}
	return nr;
}

static void fire_consume(struct fire *f, enum fire_how how)
{
	struct ukevent evs[FIRE_BATCH];
	struct kq mine;
	int idle = 0;

	if (kq_attach(&mine, &f->q)) {
		fire_wrong(f);
		return;
	}
	while (idle < IDLE_ROUNDS) {
		bool over = !__atomic_load_n(&f->producing, __ATOMIC_ACQUIRE);
		int nr;

		if (over && __atomic_load_n(&f->consumed, __ATOMIC_RELAXED) ==
		    __atomic_load_n(&f->produced, __ATOMIC_RELAXED))
			break;
		nr = fire_collect(f, &mine, how, evs);
		if (nr < 0) {
			fire_wrong(f);
			break;
		}
		idle = nr || !over ? 0 : idle + 1;
		for (int i = 0; i < nr; i++)
			fire_take(f, &evs[i]);
	}
	kq_unmap(&mine);
}

static void *fire_consume_thread(void *arg)
{
	struct fire_thread *t = arg;

	fire_consume(t->f, t->how);
	return NULL;
}

/* Doubles the ring at even distances. */
static void fire_grow(struct __test_metadata *_metadata, struct fire *f,
		      __u32 from, __u32 to)
{
	int steps = __builtin_ctz(to) - __builtin_ctz(from);

	for (int i = 1; i <= steps; i++) {
		while (__atomic_load_n(&f->ops, __ATOMIC_RELAXED) <
		       i * (FIRE_OPS / (steps + 2)))
			sleep_ms(1);
		ASSERT_EQ(1, kq_grow(&f->q, from << i))
			TH_LOG("to %u slots", from << i);
	}
}

TEST_F_TIMEOUT(fire, loses_nothing_and_doubles_nothing, 60)
{
	struct fire_thread prod[THREADS], cons[THREADS];
	struct fire *f = self->f;
	struct ukevent ev;
	struct kq late;

	for (int i = 0; i < variant->consumers; i++) {
		cons[i] = (struct fire_thread) { .f = f, .how = variant->how[i] };
		if (!variant->processes) {
			ASSERT_EQ(0, pthread_create(&cons[i].thread, NULL,
						    fire_consume_thread,
						    &cons[i]));
			continue;
		}
		cons[i].pid = fork();
		ASSERT_LE(0, cons[i].pid);
		if (!cons[i].pid) {
			fire_consume(f, cons[i].how);
			_exit(0);
		}
	}
	for (int i = 0; i < variant->producers; i++) {
		prod[i] = (struct fire_thread) { .f = f, .number = i };
		ASSERT_EQ(0, pthread_create(&prod[i].thread, NULL, fire_produce,
					    &prod[i]));
	}
	if (variant->grow_to)
		fire_grow(_metadata, f, variant->slots, variant->grow_to);
	for (int i = 0; i < variant->producers; i++)
		pthread_join(prod[i].thread, NULL);
	for (int i = 0; i < variant->consumers; i++) {
		EXPECT_EQ(0, variant->processes ? reap(cons[i].pid) :
			     pthread_join(cons[i].thread, NULL));
	}

	EXPECT_EQ(0, f->wrong);
	for (int i = 0; i < USERS; i++) {
		EXPECT_EQ(f->counted[i], f->told[i])
			TH_LOG("user event %d", i);
	}
	for (int i = 0; i < FDS; i++) {
		EXPECT_EQ(f->written[i], f->read[i])
			TH_LOG("eventfd %d", i);
	}

	/* What is left tells of what was read already. */
	while (kq_getevents(&f->q, &ev, 0, 1, 0) > 0) {
		EXPECT_EQ(KEVENT_SOURCE_FD, ev.source);
		EXPECT_EQ(0, drain_eventfd(ev.ident));
	}
	EXPECT_EQ(0, kevent_ring_flags(&f->q.map));
	if (variant->grow_to) {
		EXPECT_EQ(variant->grow_to, header_slots(&f->q));
		EXPECT_EQ(variant->grow_to,
			  rings_at_rest(&f->q, variant->grow_to));
	}
	ASSERT_EQ(0, kq_attach(&late, &f->q));
	want_none(&late, BY_RING);
	ASSERT_EQ(1, count(&f->q, 3, 3));
	want_value(&late, BY_RING, KEVENT_SOURCE_USER, 3, 3, 3);
	kq_unmap(&late);
}

TEST_HARNESS_MAIN
