// SPDX-License-Identifier: MIT
/*
 * Two queues for kevent-stat to look at: one that stands still, with a known number of
 * registrations in each state, and one whose events are posted, merged, collected, taken
 * back and delayed all the time.  scripts/kev/library.py knows what is here.
 */
#include <kevq.h>
#include <stdio.h>

static int check(int ret)
{
	if (ret < 0) {
		fprintf(stderr, "kevent: %s\n", strerror(-ret));
		_exit(1);
	}
	return ret;
}

static void overcommitted(struct kevq *queue, unsigned int slots)
{
	struct kevent_params params;

	memset(&params, 0, sizeof(params));
	params.flags = KEVENT_INIT_OVERCOMMIT;
	params.slots = slots;
	check(kevq_open_params(queue, &params));
}

/* 4 posted, 2 waiting, 1 disabled, a timer that is idle and a pipe that is ready */
static void stand_still(void)
{
	struct ukevent change;
	struct kevq queue;
	int ends[2], i;

	overcommitted(&queue, 4);
	for (i = 10; i < 16; i++) {
		check(kevq_apply(&queue, kevq_user((uint64_t)i, KEVENT_USER_COUNT, 0)));
		check(kevq_trigger(&queue, (uint64_t)i, 1));
	}
	change = kevq_user(16, KEVENT_USER_COUNT, 0);
	change.flags |= KEVENT_DISABLED;
	check(kevq_apply(&queue, change));
	check(kevq_apply(&queue, kevq_timer(0, KEVQ_SEC(3600), 0, 0)));
	check(pipe(ends));
	change = kevq_file(ends[0], EPOLLIN, 0);
	change.flags = KEVENT_LEVEL;
	check(kevq_apply(&queue, change));
	check(write(ends[1], "x", 1) == 1 ? 0 : -EIO);
}

int main(void)
{
	struct ukevent events[4];
	struct kevq queue;

	stand_still();
	overcommitted(&queue, 1);
	check(kevq_apply(&queue, kevq_user(1, KEVENT_USER_COUNT, 0)));
	check(kevq_apply(&queue, kevq_user(2, KEVENT_USER_COUNT, 0)));
	puts("ready");
	fflush(stdout);
	for (;;) {
		check(kevq_trigger(&queue, 1, 1));
		check(kevq_trigger(&queue, 1, 1));
		check(kevq_trigger(&queue, 2, 1));
		check(kevq_sys_getevents(queue.fd, events, 0, 4, NULL, NULL));
		check(kevq_trigger(&queue, 1, 1));
		check(kevq_apply(&queue, kevq_change(KEVENT_OP_DISABLE, KEVENT_SOURCE_USER, 1)));
		check(kevq_apply(&queue, kevq_change(KEVENT_OP_ENABLE, KEVENT_SOURCE_USER, 1)));
		usleep(10000);
	}
}
