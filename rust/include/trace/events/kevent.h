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
		    TP_STRUCT__entry(__field(const void *, queue)
				     __field(u64, ident)
				     __field(u32, value)
				     __field(u16, source)
		    ),
		    TP_fast_assign(__entry->queue = queue;
				   __entry->ident = ident;
				   __entry->value = value;
				   __entry->source = source;
		    ),
		    TP_printk("queue=%p source=%u ident=%llu value=%#x",
			      __entry->queue, __entry->source, __entry->ident,
			      __entry->value)
);

#define KEVENT_TRACE(name)						\
DEFINE_EVENT(kevent_event, name,					\
	TP_PROTO(const void *queue, u16 source, u64 ident, u32 value),	\
	TP_ARGS(queue, source, ident, value))

/* There is an event more to collect. */
KEVENT_TRACE(kevent_post);

/* What happened was added to an event that had not been collected. */
KEVENT_TRACE(kevent_merge);

/* An event found no room in the ring and waits behind it. */
KEVENT_TRACE(kevent_overflow);

/* An event was taken back before it was collected. */
KEVENT_TRACE(kevent_cancel);

/* An event was collected by kevent_getevents(). */
KEVENT_TRACE(kevent_collect);

#endif /* _TRACE_KEVENT_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
