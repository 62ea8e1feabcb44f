// SPDX-License-Identifier: MIT
/*
 * A level-triggered file and a timer in one loop: reads standard input in small pieces,
 * which is no mistake in this mode, until it ends.
 */
#include <kevq.h>
#include <stdio.h>

enum { INPUT, TIMER };

int main(void)
{
	struct kevq_event events[8];
	struct ukevent changes[2];
	int err, i, n, bytes = 0;
	struct kevq queue;
	char piece[4];

	changes[INPUT] = kevq_file(0, EPOLLIN, INPUT);
	changes[INPUT].flags = KEVENT_LEVEL;
	changes[TIMER] = kevq_timer(0, KEVQ_SEC(60), 0, TIMER);

	err = kevq_open(&queue, 1);
	if (!err && kevq_ctl(&queue, changes, 2, KEVENT_CTL_RESULTS) != 2)
		err = changes[INPUT].result ? changes[INPUT].result : changes[TIMER].result;
	if (err) {
		fprintf(stderr, "kevent: %s\n", strerror(-err));
		return 1;
	}
	while ((n = kevq_poll(&queue, events, 8, KEVQ_FOREVER)) >= 0 || n == -EINTR) {
		for (i = 0; i < n; i++) {
			ssize_t len;

			if (events[i].user_data == TIMER) {
				puts("nothing more for a minute");
				return 1;
			}
			len = read(0, piece, sizeof(piece));
			if (len <= 0) {
				printf("%d bytes\n", bytes);
				kevq_close(&queue);
				return len < 0;
			}
			bytes += (int)len;
		}
	}
	return 1;
}
