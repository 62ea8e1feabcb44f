// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: queues that are watched themselves, by poll(), epoll, io_uring and
 * aio.  Whoever watches is told of events of every kind, nothing recurses, and
 * nobody is left behind when one of them is closed.
 */
#include "kevent_util.h"

#include <linux/aio_abi.h>
#include <linux/io_uring.h>

/*
 * io_uring, by hand
 */

/* Room for more completions than there are events, or multishot polls end */
#define ENTRIES 1024

struct uring {
	int fd;
	struct io_uring_params params;
	unsigned char *ring;		/* of submissions and of completions */
	size_t ring_size;
	struct io_uring_sqe *sqes;
	size_t sqes_size;
};

static unsigned int *uring_field(const struct uring *r, __u32 offset)
{
	return (unsigned int *)(r->ring + offset);
}

static int uring_setup(struct uring *r)
{
	const struct io_uring_params *p = &r->params;
	size_t sq, cq;

	memset(r, 0, sizeof(*r));
	r->fd = syscall(__NR_io_uring_setup, ENTRIES, &r->params);
	if (r->fd < 0)
		return -errno;
	sq = p->sq_off.array + p->sq_entries * sizeof(__u32);
	cq = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
	r->ring_size = sq > cq ? sq : cq;
	r->sqes_size = p->sq_entries * sizeof(struct io_uring_sqe);
	r->ring = mmap(NULL, r->ring_size, PROT_READ | PROT_WRITE, MAP_SHARED,
		       r->fd, IORING_OFF_SQ_RING);
	r->sqes = mmap(NULL, r->sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED,
		       r->fd, IORING_OFF_SQES);
	if (r->ring == MAP_FAILED || r->sqes == MAP_FAILED ||
	    !(p->features & IORING_FEAT_SINGLE_MMAP))
		return -EOPNOTSUPP;
	return 0;
}

static void uring_close(struct uring *r)
{
	if (r->fd < 0)
		return;
	munmap(r->ring, r->ring_size);
	munmap(r->sqes, r->sqes_size);
	close(r->fd);
	r->fd = -1;
}

static int uring_enter(struct uring *r, unsigned int submit, int timeout_ms)
{
	struct __kernel_timespec ts = ms_to_timespec(timeout_ms);
	struct io_uring_getevents_arg arg = { .ts = (uintptr_t)&ts };
	unsigned int flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
	long ret = syscall(__NR_io_uring_enter, r->fd, submit,
			   timeout_ms ? 1 : 0, flags, &arg, sizeof(arg));

	return ret < 0 ? -errno : ret;
}

/* One if it was submitted */
static int uring_submit(struct uring *r, struct io_uring_sqe sqe)
{
	const struct io_sqring_offsets *off = &r->params.sq_off;
	unsigned int tail = *uring_field(r, off->tail);
	unsigned int index = tail & *uring_field(r, off->ring_mask);

	r->sqes[index] = sqe;
	uring_field(r, off->array)[index] = index;
	__atomic_store_n(uring_field(r, off->tail), tail + 1, __ATOMIC_RELEASE);
	return uring_enter(r, 1, 0);
}

static bool uring_reap(struct uring *r, struct io_uring_cqe *cqe)
{
	const struct io_cqring_offsets *off = &r->params.cq_off;
	unsigned int head = *uring_field(r, off->head);
	unsigned char *cqes = r->ring + off->cqes;

	if (head == __atomic_load_n(uring_field(r, off->tail), __ATOMIC_ACQUIRE))
		return false;
	memcpy(cqe, cqes + (head & *uring_field(r, off->ring_mask)) *
	       sizeof(*cqe), sizeof(*cqe));
	__atomic_store_n(uring_field(r, off->head), head + 1, __ATOMIC_RELEASE);
	return true;
}

/* One if there was a completion, zero if there was none in time */
static int uring_wait(struct uring *r, struct io_uring_cqe *cqe, int timeout_ms)
{
	int ret;

	if (uring_reap(r, cqe))
		return 1;
	ret = uring_enter(r, 0, timeout_ms);
	if (ret < 0 && ret != -ETIME)
		return ret;
	return uring_reap(r, cqe);
}

#define POLL_TAG 1

static int uring_poll(struct uring *r, int fd, unsigned int flags)
{
	struct io_uring_sqe sqe = {
		.opcode = IORING_OP_POLL_ADD,
		.fd = fd,
		.len = flags,
		.poll32_events = POLLIN,
		.user_data = POLL_TAG,
	};

	return uring_submit(r, sqe);
}

/*
 * aio
 */

static int aio_setup(aio_context_t *ctx)
{
	*ctx = 0;
	return syscall(__NR_io_setup, 8, ctx) ? -errno : 0;
}

static void aio_destroy(aio_context_t ctx)
{
	syscall(__NR_io_destroy, ctx);
}

/* Polls once; an eventfd, unless it is negative, is told of the completion. */
static int aio_poll_and_tell(aio_context_t ctx, int fd, int efd)
{
	struct iocb cb = {
		.aio_lio_opcode = IOCB_CMD_POLL,
		.aio_fildes = fd,
		.aio_buf = POLLIN,
		.aio_flags = efd < 0 ? 0 : IOCB_FLAG_RESFD,
		.aio_resfd = efd < 0 ? 0 : efd,
	};
	struct iocb *cbs[] = { &cb };
	long ret = syscall(__NR_io_submit, ctx, 1L, cbs);

	return ret < 0 ? -errno : ret;
}

static int aio_poll(aio_context_t ctx, int fd)
{
	return aio_poll_and_tell(ctx, fd, -1);
}

static int aio_wait(aio_context_t ctx, struct io_event *ev, int timeout_ms)
{
	struct __kernel_old_timespec ts = {
		.tv_sec = timeout_ms / 1000,
		.tv_nsec = timeout_ms % 1000 * NSEC_PER_MSEC,
	};
	long ret = syscall(__NR_io_getevents, ctx, timeout_ms ? 1L : 0L, 1L, ev,
			   &ts);

	return ret < 0 ? -errno : ret;
}

/*
 * Ways to watch a file
 */

#define NESTS 3

struct watcher {
	int fd;			/* what is watched */
	int ep[NESTS];		/* each watches the one before */
	struct uring r;
	aio_context_t aio;
	bool armed;
};

/**
 * struct watch_ops - a way to watch
 * @start: zero, or a negated error number if this cannot be
 * @wait: one if the file is readable, zero if it was not in time
 * @stop: undoes @start
 * @edge: tells of each event once, not as long as there is one
 * @completes: says what was so when it was told, not what is so when it is
 *	asked
 */
struct watch_ops {
	int (*start)(struct watcher *w, int fd);
	int (*wait)(struct watcher *w, int timeout_ms);
	void (*stop)(struct watcher *w);
	bool edge;
	bool completes;
};

/* aio also says what it was not asked for, if the wake-up does. */
static int expect_in(int nr, __u32 events)
{
	if (nr != 1)
		return nr;
	return (events & ~POLLRDNORM) == POLLIN ? 1 : -EPROTO;
}

static int poll_start(struct watcher *w, int fd)
{
	w->fd = fd;
	return 0;
}

static int poll_wait(struct watcher *w, int timeout_ms)
{
	struct pollfd pfd = { .fd = w->fd, .events = POLLIN };
	int nr = poll(&pfd, 1, timeout_ms);

	return expect_in(nr, pfd.revents);
}

static void poll_stop(struct watcher *w __maybe_unused)
{
}

static const struct watch_ops poll_ops = {
	.start = poll_start,
	.wait = poll_wait,
	.stop = poll_stop,
};

static int nest_epolls(struct watcher *w, int fd, int nests, __u32 events)
{
	w->fd = fd;
	for (int i = 0; i < NESTS; i++)
		w->ep[i] = -1;
	for (int i = 0; i < nests; i++) {
		struct epoll_event ev = { .events = events };

		w->ep[i] = epoll_create1(EPOLL_CLOEXEC);
		if (epoll_ctl(w->ep[i], EPOLL_CTL_ADD, fd, &ev))
			return -errno;
		fd = w->ep[i];
	}
	return 0;
}

static int epoll_start(struct watcher *w, int fd)
{
	return nest_epolls(w, fd, 1, EPOLLIN);
}

static int edge_epoll_start(struct watcher *w, int fd)
{
	return nest_epolls(w, fd, 1, EPOLLIN | EPOLLET);
}

static int nested_epoll_start(struct watcher *w, int fd)
{
	return nest_epolls(w, fd, NESTS, EPOLLIN);
}

static int nested_edge_epoll_start(struct watcher *w, int fd)
{
	return nest_epolls(w, fd, NESTS, EPOLLIN | EPOLLET);
}

static int epoll_look(struct watcher *w, int timeout_ms)
{
	struct epoll_event ev = { };
	int last = w->ep[NESTS - 1] < 0 ? 0 : NESTS - 1;
	int nr = epoll_wait(w->ep[last], &ev, 1, timeout_ms);

	return expect_in(nr, ev.events);
}

static void epoll_stop(struct watcher *w)
{
	for (int i = 0; i < NESTS; i++)
		if (w->ep[i] >= 0)
			close(w->ep[i]);
}

static const struct watch_ops epoll_ops = {
	.start = epoll_start,
	.wait = epoll_look,
	.stop = epoll_stop,
};

static const struct watch_ops edge_epoll_ops = {
	.start = edge_epoll_start,
	.wait = epoll_look,
	.stop = epoll_stop,
	.edge = true,
};

static const struct watch_ops nested_epoll_ops = {
	.start = nested_epoll_start,
	.wait = epoll_look,
	.stop = epoll_stop,
};

static const struct watch_ops nested_edge_epoll_ops = {
	.start = nested_edge_epoll_start,
	.wait = epoll_look,
	.stop = epoll_stop,
	.edge = true,
};

static int uring_start(struct watcher *w, int fd)
{
	w->fd = fd;
	w->armed = false;
	return uring_setup(&w->r);
}

static int uring_look(struct watcher *w, int timeout_ms)
{
	struct io_uring_cqe cqe;
	int ret;

	if (!w->armed && uring_poll(&w->r, w->fd, 0) != 1)
		return -EIO;
	w->armed = true;
	ret = uring_wait(&w->r, &cqe, timeout_ms);
	if (ret != 1)
		return ret;
	w->armed = false;
	return cqe.flags & IORING_CQE_F_MORE ? -EPROTO : expect_in(1, cqe.res);
}

static int multishot_look(struct watcher *w, int timeout_ms)
{
	struct io_uring_cqe cqe;
	int ret;

	/* It is armed once: it has to stay so. */
	if (!w->armed &&
	    uring_poll(&w->r, w->fd, IORING_POLL_ADD_MULTI) != 1)
		return -EIO;
	w->armed = true;
	ret = uring_wait(&w->r, &cqe, timeout_ms);
	if (ret != 1)
		return ret;
	/* All at once, so that there is room for more */
	do {
		if (!(cqe.flags & IORING_CQE_F_MORE))
			return -EPROTO;
		ret = expect_in(1, cqe.res);
	} while (ret == 1 && uring_reap(&w->r, &cqe));
	return ret;
}

static void uring_stop(struct watcher *w)
{
	uring_close(&w->r);
}

static const struct watch_ops uring_ops = {
	.start = uring_start,
	.wait = uring_look,
	.stop = uring_stop,
	.completes = true,
};

static const struct watch_ops multishot_ops = {
	.start = uring_start,
	.wait = multishot_look,
	.stop = uring_stop,
	.edge = true,
	.completes = true,
};

static int aio_start(struct watcher *w, int fd)
{
	w->fd = fd;
	w->armed = false;
	return aio_setup(&w->aio);
}

static int aio_look(struct watcher *w, int timeout_ms)
{
	struct io_event ev;
	int ret;

	if (!w->armed) {
		ret = aio_poll(w->aio, w->fd);
		if (ret != 1)
			return ret ? ret : -EIO;
	}
	w->armed = true;
	ret = aio_wait(w->aio, &ev, timeout_ms);
	if (ret != 1)
		return ret;
	w->armed = false;
	/* All that the wake-up said, be it asked for or not */
	return expect_in(1, ev.res & ~POLLRDNORM);
}

static void aio_stop(struct watcher *w)
{
	aio_destroy(w->aio);
}

static const struct watch_ops aio_ops = {
	.start = aio_start,
	.wait = aio_look,
	.stop = aio_stop,
	.completes = true,
};

/* Zero if this way is there; it can be compiled out, or be forbidden. */
static int try_ops(const struct watch_ops *ops)
{
	int fd = open_eventfd();
	struct watcher w;
	int err = ops->start(&w, fd);

	if (!err)
		ops->stop(&w);
	close(fd);
	return err;
}

/*
 * Every kind of event, and every way to watch
 */

enum kind {
	RING,		/* in the ring */
	WAITING,	/* behind the full ring, and nothing else */
	LEVEL,		/* level-triggered */
};

FIXTURE(watched) {
	struct kq q;
	enum kind kind;
	int efd;
	struct watcher w;
};

FIXTURE_VARIANT(watched) {
	enum kind kind;
	const struct watch_ops *ops;
};

FIXTURE_VARIANT_ADD(watched, ring_by_poll) { RING, &poll_ops };
FIXTURE_VARIANT_ADD(watched, waiting_by_poll) { WAITING, &poll_ops };
FIXTURE_VARIANT_ADD(watched, level_by_poll) { LEVEL, &poll_ops };
FIXTURE_VARIANT_ADD(watched, ring_by_epoll) { RING, &epoll_ops };
FIXTURE_VARIANT_ADD(watched, waiting_by_epoll) { WAITING, &epoll_ops };
FIXTURE_VARIANT_ADD(watched, level_by_epoll) { LEVEL, &epoll_ops };
FIXTURE_VARIANT_ADD(watched, ring_by_edge_epoll) { RING, &edge_epoll_ops };
FIXTURE_VARIANT_ADD(watched, waiting_by_edge_epoll) { WAITING, &edge_epoll_ops };
FIXTURE_VARIANT_ADD(watched, level_by_edge_epoll) { LEVEL, &edge_epoll_ops };
FIXTURE_VARIANT_ADD(watched, ring_by_nested_epoll) { RING, &nested_epoll_ops };
FIXTURE_VARIANT_ADD(watched, waiting_by_nested_epoll) {
	WAITING, &nested_epoll_ops
};

FIXTURE_VARIANT_ADD(watched, level_by_nested_epoll) { LEVEL, &nested_epoll_ops };
FIXTURE_VARIANT_ADD(watched, ring_by_nested_edge_epoll) {
	RING, &nested_edge_epoll_ops
};

FIXTURE_VARIANT_ADD(watched, waiting_by_nested_edge_epoll) {
	WAITING, &nested_edge_epoll_ops
};

FIXTURE_VARIANT_ADD(watched, level_by_nested_edge_epoll) {
	LEVEL, &nested_edge_epoll_ops
};

FIXTURE_VARIANT_ADD(watched, ring_by_io_uring) { RING, &uring_ops };
FIXTURE_VARIANT_ADD(watched, waiting_by_io_uring) { WAITING, &uring_ops };
FIXTURE_VARIANT_ADD(watched, level_by_io_uring) { LEVEL, &uring_ops };
FIXTURE_VARIANT_ADD(watched, ring_by_multishot) { RING, &multishot_ops };
FIXTURE_VARIANT_ADD(watched, waiting_by_multishot) { WAITING, &multishot_ops };
FIXTURE_VARIANT_ADD(watched, level_by_multishot) { LEVEL, &multishot_ops };
FIXTURE_VARIANT_ADD(watched, ring_by_aio) { RING, &aio_ops };
FIXTURE_VARIANT_ADD(watched, waiting_by_aio) { WAITING, &aio_ops };
FIXTURE_VARIANT_ADD(watched, level_by_aio) { LEVEL, &aio_ops };

/* Makes an event of that kind; zero if that worked. */
static int make_event(struct kq *q, enum kind what, int efd)
{
	struct ukevent ev;

	switch (what) {
	case RING:
		return kq_trigger(q, 0, 1, 0) != 1;
	case WAITING:
		if (kq_trigger(q, 0, 1, 0) != 1 || kq_trigger(q, 1, 1, 0) != 1)
			return 1;
		/* The second one waits; with the first gone, it alone. */
		return kq_collect(q, BY_RING, &ev, 1) != 1 || ev.ident != 0;
	case LEVEL:
		signal_eventfd(efd);
		return 0;
	}
	return 1;
}

/* Takes all events; how many there were. */
static int take_events(struct kq *q, int efd)
{
	struct ukevent evs[8];
	int sum = 0, nr;

	while ((nr = kq_getevents(q, evs, 0, ARRAY_SIZE(evs), 0)) > 0) {
		sum += nr;
		drain_eventfd(efd);
	}
	return nr < 0 ? nr : sum;
}

FIXTURE_SETUP(watched)
{
	bool waiting = variant->kind == WAITING;

	if (!kq_setup_flags(_metadata, &self->q, waiting ? 1 : 4,
			    waiting ? KEVENT_INIT_OVERCOMMIT : 0))
		return;
	self->kind = variant->kind;
	self->efd = open_eventfd();
	ASSERT_LE(0, self->efd);
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(1, kq_add_user(&self->q, i, KEVENT_USER_COUNT, 0, i));
	if (variant->kind == LEVEL)
		ASSERT_EQ(1, kq_add_mode(&self->q, self->efd, EPOLLIN,
					 KEVENT_LEVEL, 2));
	if (try_ops(variant->ops))
		SKIP(return, "there is no io_uring or aio");
}

FIXTURE_TEARDOWN(watched)
{
	kq_close(&self->q);
}

#define watch_start() variant->ops->start(&self->w, self->q.fd)
#define watch_wait(ms) variant->ops->wait(&self->w, ms)
#define watch_stop() variant->ops->stop(&self->w)
#define make() make_event(&self->q, self->kind, self->efd)
#define take() take_events(&self->q, self->efd)

/* Who tells of each event can have told of two that came together. */
static void forget(const struct watch_ops *ops, struct watcher *w)
{
	if (ops->edge)
		for (int i = 0; i < 4 && ops->wait(w, 0) == 1; i++)
			;
}

TEST_F(watched, tells_of_each_event)
{
	ASSERT_EQ(0, watch_start());
	for (int lap = 0; lap < 3; lap++) {
		EXPECT_EQ(0, watch_wait(lap ? 0 : SETTLE_MS));
		ASSERT_EQ(0, make());
		EXPECT_EQ(1, watch_wait(PATIENCE_MS));
		/* As long as there is something, if it is of that kind */
		for (int i = 0; i < 2 && !variant->ops->edge; i++)
			EXPECT_EQ(1, watch_wait(PATIENCE_MS));
		EXPECT_EQ(1, take());
		forget(variant->ops, &self->w);
		EXPECT_EQ(0, watch_wait(0));
	}
	watch_stop();
}

TEST_F(watched, tells_of_what_was_there_before)
{
	for (int lap = 0; lap < 2; lap++) {
		ASSERT_EQ(0, make());
		ASSERT_EQ(0, watch_start());
		EXPECT_EQ(1, watch_wait(PATIENCE_MS));
		EXPECT_EQ(1, take());
		watch_stop();
	}
	ASSERT_EQ(0, watch_start());
	EXPECT_EQ(0, watch_wait(0));
	watch_stop();
}

/* What is gone before anybody looks is not told of. */
TEST_F(watched, does_not_tell_of_what_is_gone)
{
	ASSERT_EQ(0, watch_start());
	EXPECT_EQ(0, watch_wait(0));
	ASSERT_EQ(0, make());
	EXPECT_EQ(1, take());
	if (variant->ops->completes) {
		/* It may have been told already; but then that was it. */
		watch_wait(SETTLE_MS);
		forget(variant->ops, &self->w);
	}
	EXPECT_EQ(0, watch_wait(0));
	watch_stop();
}

/* A thread that watches, and sleeps */
struct sleeper {
	pthread_t thread;
	const struct watch_ops *ops;
	int fd;
	pid_t tid;
	int done;
	int ret;
};

static void *sleeper_fn(void *arg)
{
	struct sleeper *s = arg;
	struct watcher w;
	int ret;

	ret = s->ops->start(&w, s->fd);
	__atomic_store_n(&s->tid, syscall(__NR_gettid), __ATOMIC_RELEASE);
	if (!ret) {
		ret = s->ops->wait(&w, PATIENCE_MS);
		s->ops->stop(&w);
	}
	s->ret = ret;
	__atomic_store_n(&s->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static int sleeper_start(struct sleeper *s, const struct watch_ops *ops, int fd)
{
	int err;

	memset(s, 0, sizeof(*s));
	s->ops = ops;
	s->fd = fd;
	err = pthread_create(&s->thread, NULL, sleeper_fn, s);
	if (!err)
		wait_until_asleep(&s->tid, &s->done);
	return -err;
}

TEST_F(watched, wakes_who_sleeps)
{
	struct sleeper s[2];
	struct waiter w = { };

	for (int lap = 0; lap < 3; lap++) {
		for (int i = 0; i < 2; i++)
			ASSERT_EQ(0, sleeper_start(&s[i], variant->ops,
						   self->q.fd));
		ASSERT_EQ(0, make());
		/* All who watch are told, not one of them. */
		for (int i = 0; i < 2; i++) {
			pthread_join(s[i].thread, NULL);
			EXPECT_EQ(1, s[i].ret)
				TH_LOG("number %d", i);
		}
		EXPECT_EQ(1, take());
	}

	/* With a third who collects, nothing would wait alone. */
	if (self->kind == WAITING)
		return;
	/* And the wake-up is not taken away from who waits for the event. */
	ASSERT_EQ(0, sleeper_start(&s[0], variant->ops, self->q.fd));
	ASSERT_EQ(0, waiter_start(&w, &self->q, 1, 1));
	ASSERT_EQ(0, make());
	ASSERT_TRUE(waiter_join(&w));
	EXPECT_EQ(1, w.ret);
	/* That may have been too fast for the other. */
	ASSERT_EQ(0, make());
	pthread_join(s[0].thread, NULL);
	EXPECT_EQ(1, s[0].ret);
}

/*
 * A consumer that sleeps in one of these ways, and takes everything when it is
 * told, misses nothing, however fast events come.
 */

#define POSTS 600	/* of all posters together */
#define POSTERS 2

struct stream {
	struct kq *q;
	enum kind kind;
	int efd;
	int wrong;
	__u64 posted;
};

static void *stream_post(void *arg)
{
	struct stream *st = arg;

	for (int i = 0; i < POSTS / POSTERS; i++) {
		__atomic_fetch_add(&st->posted, 1, __ATOMIC_SEQ_CST);
		if (st->kind == LEVEL)
			signal_eventfd(st->efd);
		else if (kq_trigger(st->q, i % 2, 1, 0) != 1)
			__atomic_fetch_add(&st->wrong, 1, __ATOMIC_RELAXED);
		if (i % 16 == 15)
			sched_yield();
	}
	return NULL;
}

static __u64 stream_take(struct stream *st)
{
	struct ukevent evs[4];
	__u64 sum = 0, val;
	int nr;

	while ((nr = kq_getevents(st->q, evs, 0, ARRAY_SIZE(evs), 0)) > 0) {
		for (int i = 0; i < nr; i++) {
			if (evs[i].source == KEVENT_SOURCE_USER) {
				sum += evs[i].events;
				continue;
			}
			while ((val = drain_eventfd(st->efd)))
				sum += val;
		}
	}
	return sum;
}

TEST_F_TIMEOUT(watched, misses_nothing, 60)
{
	struct stream st = {
		.q = &self->q,
		.kind = self->kind,
		.efd = self->efd,
	};
	pthread_t posters[POSTERS];
	__u64 taken = 0;

	ASSERT_EQ(0, watch_start());
	for (int i = 0; i < POSTERS; i++)
		ASSERT_EQ(0, pthread_create(&posters[i], NULL, stream_post, &st));
	while (taken < POSTS) {
		ASSERT_EQ(1, watch_wait(PATIENCE_MS))
			TH_LOG("%llu of %llu were taken", taken, st.posted);
		taken += stream_take(&st);
		ASSERT_GE(__atomic_load_n(&st.posted, __ATOMIC_SEQ_CST), taken);
	}
	for (int i = 0; i < POSTERS; i++)
		pthread_join(posters[i], NULL);
	EXPECT_EQ(0, st.wrong);
	EXPECT_EQ(POSTS, taken);
	watch_stop();
}

/*
 * What takes more than one of these
 */

FIXTURE(watchers) {
	struct kq q;
	int efd;
};

FIXTURE_SETUP(watchers)
{
	if (!kq_setup(_metadata, &self->q, 4))
		return;
	self->efd = open_eventfd();
	ASSERT_LE(0, self->efd);
	ASSERT_EQ(1, kq_add(&self->q, self->efd, EPOLLIN, 7));
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(1, kq_add_user(&self->q, i, KEVENT_USER_COUNT, 0, i));
}

FIXTURE_TEARDOWN(watchers)
{
	kq_close(&self->q);
}

/* The queue is readable already, and yet this is news. */
TEST_F(watchers, are_told_of_an_event_that_has_to_wait)
{
	static const struct watch_ops * const all[] = {
		&edge_epoll_ops, &nested_edge_epoll_ops, &multishot_ops,
	};
	struct watcher w;
	struct kq q;

	ASSERT_EQ(0, kq_open_flags(&q, 1, KEVENT_INIT_OVERCOMMIT, 0));
	for (int i = 0; i < 3; i++)
		ASSERT_EQ(1, kq_add_user(&q, i, KEVENT_USER_COUNT, 0, i));
	for (size_t n = 0; n < ARRAY_SIZE(all); n++) {
		if (try_ops(all[n]))
			continue;
		ASSERT_EQ(0, all[n]->start(&w, q.fd));
		EXPECT_EQ(0, all[n]->wait(&w, 0));
		for (int i = 0; i < 3; i++) {
			ASSERT_EQ(1, kq_trigger(&q, i, 1, 0));
			EXPECT_EQ(1, all[n]->wait(&w, PATIENCE_MS))
				TH_LOG("way %zu, event %d", n, i);
			EXPECT_EQ(0, all[n]->wait(&w, 0))
				TH_LOG("way %zu, event %d", n, i);
		}
		EXPECT_EQ(3, take_events(&q, self->efd));
		all[n]->stop(&w);
	}
	kq_close(&q);
}

/* Each kind of poll mask that a program can ask for */
TEST_F(watchers, see_a_readable_file_and_nothing_else)
{
	const short all = POLLIN | POLLOUT | POLLPRI | POLLRDNORM | POLLRDBAND |
			  POLLWRNORM | POLLWRBAND;
	struct pollfd pfd = { .fd = self->q.fd, .events = all };

	EXPECT_EQ(0, poll(&pfd, 1, 0));
	signal_eventfd(self->efd);
	EXPECT_EQ(1, poll(&pfd, 1, 0));
	EXPECT_EQ(POLLIN | POLLRDNORM, pfd.revents);
	pfd.events = all & ~(POLLIN | POLLRDNORM);
	EXPECT_EQ(0, poll(&pfd, 1, 0));
	EXPECT_EQ(1, take_events(&self->q, self->efd));
}

TEST_F(watchers, that_were_cancelled_are_not_told)
{
	struct io_uring_sqe remove = {
		.opcode = IORING_OP_POLL_REMOVE,
		.fd = -1,
		.addr = POLL_TAG,
		.user_data = POLL_TAG + 1,
	};
	struct io_uring_cqe cqe;
	struct uring r;

	if (uring_setup(&r))
		SKIP(return, "there is no io_uring");
	for (int multi = 0; multi < 2; multi++) {
		int seen = 0;

		ASSERT_EQ(1, uring_poll(&r, self->q.fd, multi ?
					IORING_POLL_ADD_MULTI : 0));
		ASSERT_EQ(1, uring_submit(&r, remove));
		for (int i = 0; i < 2; i++) {
			ASSERT_EQ(1, uring_wait(&r, &cqe, PATIENCE_MS));
			EXPECT_EQ(cqe.user_data == POLL_TAG ? -ECANCELED : 0,
				  cqe.res);
			EXPECT_EQ(0, cqe.flags & IORING_CQE_F_MORE);
			seen |= cqe.user_data;
		}
		EXPECT_EQ(POLL_TAG | (POLL_TAG + 1), seen);
		signal_eventfd(self->efd);
		EXPECT_EQ(0, uring_wait(&r, &cqe, 0));
		EXPECT_EQ(1, take_events(&self->q, self->efd));
	}
	uring_close(&r);
}

static int uring_close_fd(struct uring *r, int fd, bool by_worker)
{
	struct io_uring_sqe sqe = {
		.opcode = IORING_OP_CLOSE,
		.fd = fd,
		.flags = by_worker ? IOSQE_ASYNC : 0,
	};
	struct io_uring_cqe cqe;

	if (uring_submit(r, sqe) != 1 || uring_wait(r, &cqe, PATIENCE_MS) != 1)
		return -ETIME;
	return cqe.res;
}

/* At once, and by a thread of the kernel, while a duplicate is open */
TEST_F(watchers, are_not_told_of_what_io_uring_has_closed)
{
	struct kq *q = &self->q;
	struct uring r;

	if (uring_setup(&r))
		SKIP(return, "there is no io_uring");
	for (int round = 0; round < 16; round++) {
		enum collect_by first = round & 1 ? BY_RING : BY_SYSCALL;
		enum collect_by then = round & 1 ? BY_SYSCALL : BY_RING;
		__u32 mode = round & 8 ? KEVENT_LEVEL : KEVENT_EDGE;
		int fd = open_eventfd(), copy = dup(fd);

		ASSERT_EQ(1, kq_add_mode(q, fd, EPOLLIN, mode, 9));
		if (round & 2)
			signal_eventfd(copy);
		ASSERT_EQ(0, uring_close_fd(&r, fd, round & 4))
			TH_LOG("round %d", round);
		/* Neither the event that there was, nor another */
		for (int i = 0; i < 2; i++) {
			want_none(q, first);
			want_none(q, then);
			EXPECT_EQ(0, kevent_ring_flags(&q->map));
			signal_eventfd(copy);
		}
		want_none(q, first);
		want_none(q, then);
		EXPECT_EQ(-EBADF, kq_del(q, fd));
		EXPECT_EQ(-ENOENT, kq_del(q, copy));
		close(copy);
	}
	uring_close(&r);
}

/*
 * An eventfd tells of the completions of an io_uring, a queue of the eventfd,
 * and the io_uring polls the queue: each completion would make another.  The
 * kernel has a sign for wake-ups of that origin, which must not get lost on the
 * way; it ends the poll.
 */

FIXTURE(circle) {
	struct kq q;
	int efd;
	struct uring r;
};

FIXTURE_VARIANT(circle) {
	__u32 mode;
	bool epoll;	/* another one on the way */
};

FIXTURE_VARIANT_ADD(circle, edge) { KEVENT_EDGE, false };
FIXTURE_VARIANT_ADD(circle, level) { KEVENT_LEVEL, false };
FIXTURE_VARIANT_ADD(circle, edge_and_epoll) { KEVENT_EDGE, true };
FIXTURE_VARIANT_ADD(circle, level_and_epoll) { KEVENT_LEVEL, true };

FIXTURE_SETUP(circle)
{
	self->r.fd = -1;
	if (!kq_setup(_metadata, &self->q, 4))
		return;
	self->efd = open_eventfd();
	ASSERT_LE(0, self->efd);
	ASSERT_EQ(1, kq_add_mode(&self->q, self->efd, EPOLLIN, variant->mode,
				 7));
	if (uring_setup(&self->r))
		SKIP(return, "there is no io_uring");
	ASSERT_EQ(0, syscall(__NR_io_uring_register, self->r.fd,
			     IORING_REGISTER_EVENTFD, &self->efd, 1));
}

FIXTURE_TEARDOWN(circle)
{
	uring_close(&self->r);
	kq_close(&self->q);
}

#define CIRCLES 500

TEST_F(circle, comes_to_an_end)
{
	struct io_uring_sqe nop = { .opcode = IORING_OP_NOP };
	struct epoll_event eev = { .events = EPOLLIN | EPOLLET };
	int polls = 0, last_flags = 0;
	int fd = self->q.fd;
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct io_uring_cqe cqe;
	struct ukevent evs[4];

	if (variant->epoll) {
		ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, fd, &eev));
		fd = ep;
	}
	ASSERT_EQ(1, uring_poll(&self->r, fd, IORING_POLL_ADD_MULTI));
	ASSERT_EQ(0, uring_wait(&self->r, &cqe, 0));
	ASSERT_EQ(1, uring_submit(&self->r, nop));

	/* Whatever comes is taken at once, so that more can come. */
	for (int i = 0; i < CIRCLES; i++) {
		while (uring_wait(&self->r, &cqe, 0) == 1) {
			if (cqe.user_data != POLL_TAG)
				continue;
			polls++;
			last_flags = cqe.flags;
		}
		if (variant->epoll)
			epoll_wait(ep, &eev, 1, 0);
		drain_eventfd(self->efd);
		kq_getevents(&self->q, evs, 0, ARRAY_SIZE(evs), 0);
		if (i < 20)
			sleep_ms(1);
	}
	EXPECT_LE(1, polls);
	EXPECT_GE(8, polls)
		TH_LOG("it goes round and round");
	EXPECT_EQ(0, last_flags & IORING_CQE_F_MORE)
		TH_LOG("the poll has not ended");

	/* Who polls again gets the next event as ever. */
	take_events(&self->q, self->efd);
	while (uring_wait(&self->r, &cqe, 0) == 1)
		;
	ASSERT_EQ(1, uring_poll(&self->r, fd, 0));
	signal_eventfd(self->efd);
	ASSERT_EQ(1, uring_wait(&self->r, &cqe, PATIENCE_MS));
	EXPECT_EQ(POLLIN, cqe.res);
	close(ep);
}

/* Other events of such a queue do not end the poll. */
TEST_F(circle, is_no_reason_to_end_other_polls)
{
	struct io_uring_cqe cqe;

	if (variant->epoll)
		return;
	ASSERT_EQ(1, kq_add_user(&self->q, 1, KEVENT_USER_COUNT, 0, 1));
	/* Its completions are not told of. */
	ASSERT_EQ(0, syscall(__NR_io_uring_register, self->r.fd,
			     IORING_UNREGISTER_EVENTFD, NULL, 0));
	ASSERT_EQ(1, uring_poll(&self->r, self->q.fd, IORING_POLL_ADD_MULTI));
	for (int i = 0; i < 20; i++) {
		int ret = 1;

		if (i % 2)
			ret = kq_trigger(&self->q, 1, 1, 0);
		else
			signal_eventfd(self->efd);
		ASSERT_EQ(1, ret);
		ASSERT_EQ(1, uring_wait(&self->r, &cqe, PATIENCE_MS));
		EXPECT_EQ(POLL_TAG, cqe.user_data);
		EXPECT_EQ(POLLIN, cqe.res);
		EXPECT_EQ(IORING_CQE_F_MORE, cqe.flags & IORING_CQE_F_MORE);
		EXPECT_EQ(1, take_events(&self->q, self->efd));
		EXPECT_EQ(0, uring_wait(&self->r, &cqe, 0));
	}
}

/*
 * The same circle by way of aio, begun by another source: who tells the eventfd
 * of a completion right in the wake-up of the queue comes back to that queue
 * with its lock held.
 */
TEST_F(watchers, can_tell_an_eventfd_that_the_queue_watches)
{
	struct ukevent evs[4];
	struct io_event ev;
	aio_context_t ctx;

	if (aio_setup(&ctx))
		SKIP(return, "there is no aio");
	/* Two, so that there is somebody left to be woken. */
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(1, aio_poll_and_tell(ctx, self->q.fd, self->efd));
	ASSERT_EQ(1, kq_trigger(&self->q, 1, 1, 0));
	for (int i = 0; i < 2; i++) {
		ASSERT_EQ(1, aio_wait(ctx, &ev, PATIENCE_MS));
		EXPECT_EQ(POLLIN, ev.res & ~POLLRDNORM);
	}
	/* That of the trigger, and that of the eventfd */
	EXPECT_EQ(2, kq_getevents(&self->q, evs, 2, ARRAY_SIZE(evs),
				  PATIENCE_MS));
	aio_destroy(ctx);
}

/*
 * What watches files cannot be watched with a queue, in whatever mode.
 */

TEST_F(watchers, cannot_be_watched)
{
	static const __u32 modes[] = {
		KEVENT_EDGE, KEVENT_LEVEL,
		KEVENT_EDGE | KEVENT_ONESHOT,
		KEVENT_LEVEL | KEVENT_DISPATCH,
		KEVENT_EDGE | KEVENT_DISABLED,
		KEVENT_EDGE | KEVENT_EXCLUSIVE,
		KEVENT_EDGE | KEVENT_ALWAYS_READY,
		KEVENT_LEVEL | KEVENT_ALWAYS_READY,
	};
	struct watcher empty, nested;
	struct kq other;
	struct uring r;
	int fds[6];

	ASSERT_EQ(0, kq_open(&other, 1));
	ASSERT_EQ(0, epoll_start(&empty, self->efd));
	ASSERT_EQ(0, nested_epoll_start(&nested, self->q.fd));
	fds[0] = self->q.fd;
	fds[1] = other.fd;
	fds[2] = empty.ep[0];
	fds[3] = nested.ep[0];
	fds[4] = nested.ep[NESTS - 1];
	fds[5] = uring_setup(&r) ? self->q.fd : r.fd;
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		for (size_t m = 0; m < ARRAY_SIZE(modes); m++) {
			EXPECT_EQ(-ELOOP, kq_add_mode(&self->q, fds[i], EPOLLIN,
						      modes[m], 1))
				TH_LOG("file %zu, mode %#x", i, modes[m]);
			if (modes[m] & KEVENT_EXCLUSIVE)
				continue;
			EXPECT_EQ(-ELOOP, kq_set_mode(&self->q, fds[i], EPOLLIN,
						      modes[m], 1))
				TH_LOG("file %zu, mode %#x", i, modes[m]);
		}
	}
	/* No slot was lost. */
	ASSERT_EQ(1, kq_add_user(&self->q, 5, KEVENT_USER_COUNT, 0, 5));
	epoll_stop(&empty);
	epoll_stop(&nested);
	uring_close(&r);
	kq_close(&other);
}

/*
 * Whatever is closed first
 */

enum part {
	SOURCE,
	QUEUE,
	WATCHER,
	PARTS,
};

struct chain {
	struct kq q;
	int efd;
	int copy;	/* of the eventfd, to write to when it is closed */
	struct watcher ep;
	struct watcher r;
	struct watcher aio;
	bool has_uring;
	bool has_aio;
	bool open[PARTS];
};

static void close_part(struct chain *c, enum part part)
{
	c->open[part] = false;
	switch (part) {
	case SOURCE:
		close(c->efd);
		break;
	case QUEUE:
		kq_close(&c->q);
		break;
	case WATCHER:
		epoll_stop(&c->ep);
		if (c->has_uring)
			uring_stop(&c->r);
		if (c->has_aio)
			aio_stop(&c->aio);
		break;
	default:
		break;
	}
}

static void want_chain(struct __test_metadata *_metadata, struct chain *c,
		       const char *what)
{
	/* A poll on its way holds the queue, a registration in epoll does not. */
	bool queue = c->open[QUEUE] || (c->open[WATCHER] &&
					(c->has_uring || c->aio.armed));
	bool alive = c->open[SOURCE] && queue;
	int patience = alive ? PATIENCE_MS : 0;
	struct ukevent ev;

	signal_eventfd(c->copy);
	if (c->open[WATCHER]) {
		EXPECT_EQ(alive, epoll_look(&c->ep, 0))
			TH_LOG("%s", what);
		forget(&edge_epoll_ops, &c->ep);
	}
	if (c->open[WATCHER] && c->has_uring) {
		EXPECT_EQ(alive, multishot_look(&c->r, patience))
			TH_LOG("%s", what);
	}
	/* That tells once, and is not armed again. */
	if (c->open[WATCHER] && c->aio.armed) {
		EXPECT_EQ(alive, aio_look(&c->aio, patience))
			TH_LOG("%s", what);
	}
	if (c->open[QUEUE]) {
		EXPECT_EQ(c->open[SOURCE], kq_getevents(&c->q, &ev, 0, 1, 0))
			TH_LOG("%s", what);
	}
}

TEST_F(watchers, queues_and_sources_can_be_closed_in_any_order)
{
	static const enum part orders[][PARTS] = {
		{ SOURCE, QUEUE, WATCHER }, { SOURCE, WATCHER, QUEUE },
		{ QUEUE, SOURCE, WATCHER }, { QUEUE, WATCHER, SOURCE },
		{ WATCHER, SOURCE, QUEUE }, { WATCHER, QUEUE, SOURCE },
	};
	static const char * const names[] = { "source", "queue", "watcher" };

	for (size_t o = 0; o < 2 * ARRAY_SIZE(orders); o++) {
		const enum part *order = orders[o / 2];
		char what[64] = "none closed";
		struct chain c = { };

		ASSERT_EQ(0, kq_open(&c.q, 1));
		c.efd = open_eventfd();
		c.copy = dup(c.efd);
		ASSERT_EQ(1, kq_add_mode(&c.q, c.efd, EPOLLIN, o % 2 ?
					 KEVENT_EDGE : KEVENT_LEVEL, 1));
		ASSERT_EQ(0, nested_edge_epoll_start(&c.ep, c.q.fd));
		c.has_uring = !uring_start(&c.r, c.q.fd);
		c.has_aio = !aio_start(&c.aio, c.q.fd);
		for (int i = 0; i < PARTS; i++)
			c.open[i] = true;
		want_chain(_metadata, &c, what);
		drain_eventfd(c.efd);
		EXPECT_EQ(0, take_events(&c.q, c.copy));
		/* Armed for what comes now */
		if (c.has_aio)
			EXPECT_EQ(0, aio_look(&c.aio, 0));
		if (c.has_uring)
			forget(&multishot_ops, &c.r);
		for (int i = 0; i < PARTS; i++) {
			close_part(&c, order[i]);
			snprintf(what, sizeof(what), "order %zu, %s closed", o,
				 names[order[i]]);
			if (i + 1 < PARTS)
				want_chain(_metadata, &c, what);
		}
		close(c.copy);
	}
}

/*
 * Polls of all kinds from several threads, while events are posted and
 * collected, and the queue is closed under their hands.  The kernel has to
 * survive it.
 */

#define STORM_ROUNDS	8
#define STORM_OPS	120	/* of each thread in each round */

struct storm {
	struct kq q;
	int efd[2];
	__u64 seed;
	int wrong;
	pthread_barrier_t start;
};

struct storm_thread {
	struct storm *st;
	const struct watch_ops *ops;	/* NULL: posts and collects */
	int number;
	pthread_t thread;
};

static void *storm_watch(void *arg)
{
	struct storm_thread *t = arg;
	struct storm *st = t->st;
	struct watcher w;
	int nr = 0;

	pthread_barrier_wait(&st->start);
	while (nr < STORM_OPS) {
		/* Refused when the queue is closed; then that was it. */
		if (t->ops->start(&w, st->q.fd)) {
			if (t->ops != &uring_ops && t->ops != &multishot_ops &&
			    t->ops != &aio_ops)
				t->ops->stop(&w);
			break;
		}
		for (int i = 0; i < 10; i++, nr++)
			t->ops->wait(&w, nr % 3 == 2);
		t->ops->stop(&w);
	}
	return NULL;
}

static void *storm_post(void *arg)
{
	struct storm_thread *t = arg;
	struct storm *st = t->st;
	__u64 rnd = st->seed + t->number;
	struct ukevent evs[4];

	pthread_barrier_wait(&st->start);
	for (int i = 0; i < 4 * STORM_OPS; i++) {
		__u64 what = next_random(&rnd) >> 20;
		int ret = 1;

		switch (what % 5) {
		case 0:
		case 1:
			ret = kq_trigger(&st->q, what >> 8 & 1, 1, 0);
			break;
		case 2:
			signal_eventfd(st->efd[what >> 8 & 1]);
			break;
		case 3:
			drain_eventfd(st->efd[what >> 8 & 1]);
			break;
		case 4:
			ret = kq_getevents(&st->q, evs, what >> 8 & 1, 4, 1);
			ret = ret < 0 ? ret : 1;
			break;
		}
		/* Its number may be that of another file by now. */
		if (ret != 1 && ret != -EBADF && ret != -EINVAL)
			__atomic_fetch_add(&st->wrong, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

TEST_F_TIMEOUT(watchers, storm_while_the_queue_is_closed, 60)
{
	static const struct watch_ops * const all[] = {
		&poll_ops, &epoll_ops, &nested_edge_epoll_ops, &uring_ops,
		&multishot_ops, &aio_ops,
	};
	struct storm st = { .seed = random_seed() };
	struct storm_thread threads[8] = { };
	int nr = 2;	/* who post and collect */

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		if (!try_ops(all[i]))
			threads[nr++].ops = all[i];

	for (int round = 0; round < STORM_ROUNDS; round++) {
		ASSERT_EQ(0, kq_open_flags(&st.q, round % 2 ? 1 : 8, round % 2 ?
					   KEVENT_INIT_OVERCOMMIT : 0, 0));
		for (int i = 0; i < 2; i++) {
			st.efd[i] = open_eventfd();
			ASSERT_EQ(1, kq_add_mode(&st.q, st.efd[i], EPOLLIN, i ?
						 KEVENT_LEVEL : KEVENT_EDGE,
						 i));
			ASSERT_EQ(1, kq_add_user(&st.q, i, KEVENT_USER_COUNT, 0,
						 i));
		}
		pthread_barrier_init(&st.start, NULL, nr + 1);
		for (int i = 0; i < nr; i++) {
			struct storm_thread *t = &threads[i];

			t->st = &st;
			t->number = i;
			ASSERT_EQ(0, pthread_create(&t->thread, NULL, t->ops ?
						    storm_watch : storm_post,
						    t));
		}
		pthread_barrier_wait(&st.start);
		sleep_ms(1 + 5 * (round % 4));
		/* Not all at once: the ring is still mapped, then not. */
		close(st.q.fd);
		sched_yield();
		st.q.fd = -1;
		kq_unmap(&st.q);
		for (int i = 0; i < nr; i++)
			pthread_join(threads[i].thread, NULL);
		for (int i = 0; i < 2; i++)
			close(st.efd[i]);
		pthread_barrier_destroy(&st.start);
	}
	EXPECT_EQ(0, st.wrong);

	/* And then everything is as ever. */
	signal_eventfd(self->efd);
	want_event(&self->q, BY_RING, self->efd, EPOLLIN, EPOLLIN, 7);
}

TEST_HARNESS_MAIN
