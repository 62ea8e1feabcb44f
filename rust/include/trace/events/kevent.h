/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints of kevent: what becomes of the events of a queue.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kevent

#if !defined(_TRACE_KEVENT_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_KEVENT_H

#include <linux/tracepoint.h>

DECLARE_EVENT_CLASS(kevent_event,

	TP_PROTO(const void *queue, u16 source, u64 ident, u32 value),

	TP_ARGS(queue, source, ident, value),

	TP_STRUCT__entry(
		__field(const void *, queue)
		__field(u64, ident)
		__field(u32, value)
		__field(u16, source)
	),

	TP_fast_assign(
		__entry->queue = queue;
		__entry->ident = ident;
		__entry->value = value;
		__entry->source = source;
	),

	TP_printk("queue=%p source=%u ident=%llu value=%#x", __entry->queue,
		  __entry->source, __entry->ident, __entry->value)
);

/* There is an event more to collect. */
DEFINE_EVENT(kevent_event, kevent_post,
	TP_PROTO(const void *queue, u16 source, u64 ident, u32 value),
	TP_ARGS(queue, source, ident, value)
);

/* What happened was added to an event that had not been collected. */
DEFINE_EVENT(kevent_event, kevent_merge,
	TP_PROTO(const void *queue, u16 source, u64 ident, u32 value),
	TP_ARGS(queue, source, ident, value)
);

/* An event found no room in the ring and waits behind it. */
DEFINE_EVENT(kevent_event, kevent_overflow,
	TP_PROTO(const void *queue, u16 source, u64 ident, u32 value),
	TP_ARGS(queue, source, ident, value)
);

/* An event was taken back before it was collected. */
DEFINE_EVENT(kevent_event, kevent_cancel,
	TP_PROTO(const void *queue, u16 source, u64 ident, u32 value),
	TP_ARGS(queue, source, ident, value)
);

/* An event was collected by kevent_getevents(). */
DEFINE_EVENT(kevent_event, kevent_collect,
	TP_PROTO(const void *queue, u16 source, u64 ident, u32 value),
	TP_ARGS(queue, source, ident, value)
);

#endif /* _TRACE_KEVENT_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
