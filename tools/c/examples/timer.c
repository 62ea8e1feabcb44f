// SPDX-License-Identifier: MIT
/*
 * A timer: says so ten times a second, three times.  If the program was late, an event
 * stands for several times.
 */
#include <kevq.h>
#include <stdio.h>

int main(void)
{
	struct kevq_event event;
	unsigned int ticks = 0;
	struct kevq queue;
	int err;

	err = kevq_open(&queue, 1);
	if (!err)
		err = kevq_apply(&queue, kevq_timer(0, KEVQ_MS(100), KEVQ_MS(100), 1));
	if (err) {
		fprintf(stderr, "kevent: %s\n", strerror(-err));
		return 1;
	}
	while (ticks < 3) {
		if (kevq_poll(&queue, &event, 1, KEVQ_FOREVER) == 1)
			ticks += event.value;
	}
	puts("three times, at least");
	kevq_close(&queue);
	return 0;
}
