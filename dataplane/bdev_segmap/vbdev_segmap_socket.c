/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The thread of the data plane's Unix socket. It cuts the byte stream into frames and puts frames onto it, and knows no
 * more of them than their length. It blocks in poll(), so that an idle or slow daemon costs the reactors nothing.
 *
 * Limits: FRAME_BYTES_MAX for a frame, FRAMES_MAX received ones that the owner has not dealt with yet (then nothing more
 * is read), QUEUE_BYTES_MAX for what waits to be written (then the peer is cut off).
 */
#include "vbdev_segmap_socket.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/un.h>

#include "spdk/env.h"
#include "spdk/log.h"
#include "spdk/string.h"

#define FRAMES_MAX 1024u
#define QUEUE_BYTES_MAX (64u << 20)
#define DISCARDS_MAX 64
#define BACKLOG 64
#define PATH_VARIABLE "SEGMAP_DATAPLANE_SOCKET"

static const char *g_path;

/* A connection's beginning and end, as the owner is told of them. */
struct visit {
	uint64_t peer;
	struct segmap_message came;
	struct segmap_message gone;
};

static struct link {
	bool started;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	pthread_t thread;
	int listener;
	int connection; /* -1: none */
	int wakeup; /* an eventfd: the queue has changed, a frame is done, or the end has come */
	_Atomic(bool) stop;
	_Atomic(uint32_t) frames; /* received, and not done */
	uint64_t peer; /* the connection's number */
	struct visit *visit;

	/* The frame that is being received. */
	uint8_t prefix[4];
	uint32_t received;
	struct segmap_frame *incoming;

	pthread_mutex_t lock; /* for what follows */
	TAILQ_HEAD(, segmap_frame) queue;
	uint64_t queued_bytes;
	uint64_t queue_peer; /* whose frames are taken */
	bool closing; /* after the queue has been written */
} g_link;

void
segmap_link_set_path(const char *path)
{
	g_path = path;
}

struct segmap_frame *
segmap_frame_new(uint32_t length)
{
	struct segmap_frame *frame = calloc(1, sizeof(*frame) + length);

	if (frame != NULL) {
		frame->length = length;
	}
	return frame;
}

static void
wake(void)
{
	uint64_t one = 1;
	ssize_t written = write(g_link.wakeup, &one, sizeof(one));

	(void)written; /* a full counter wakes just as well */
}

/* ---- the owner's side ---- */

void
segmap_link_send(struct segmap_frame *frame)
{
	bool taken;

	pthread_mutex_lock(&g_link.lock);
	taken = frame->peer == g_link.queue_peer && !g_link.closing;
	if (taken) {
		TAILQ_INSERT_TAIL(&g_link.queue, frame, link);
		g_link.queued_bytes += frame->length;
	}
	pthread_mutex_unlock(&g_link.lock);
	if (taken) {
		wake();
	} else {
		free(frame);
	}
}

void
segmap_link_close(uint64_t peer)
{
	pthread_mutex_lock(&g_link.lock);
	if (peer == g_link.queue_peer) {
		g_link.closing = true;
	}
	pthread_mutex_unlock(&g_link.lock);
	wake();
}

void
segmap_link_done(struct segmap_frame *frame)
{
	free(frame);
	if (atomic_fetch_sub(&g_link.frames, 1) == FRAMES_MAX) {
		wake();
	}
}

/* ---- the thread's side ---- */

static void
set_queue(uint64_t peer)
{
	struct segmap_frame *frame;

	pthread_mutex_lock(&g_link.lock);
	while ((frame = TAILQ_FIRST(&g_link.queue)) != NULL) {
		TAILQ_REMOVE(&g_link.queue, frame, link);
		free(frame);
	}
	g_link.queued_bytes = 0;
	g_link.queue_peer = peer;
	g_link.closing = false;
	pthread_mutex_unlock(&g_link.lock);
}

/* Throw away what has been received: closing over it would take our last words from the peer. */
static void
close_connection(void)
{
	static uint8_t rest[64 << 10];

	for (int i = 0; i < DISCARDS_MAX && recv(g_link.connection, rest, sizeof(rest), MSG_DONTWAIT) > 0; i++) {
	}
	close(g_link.connection);
	g_link.connection = -1;
}

static void
peer_came(void *ctx)
{
	segmap_peer_came(((struct visit *)ctx)->peer);
}

static void
peer_gone(void *ctx)
{
	segmap_peer_gone(((struct visit *)ctx)->peer);
	free(ctx);
}

static void
hang_up(void)
{
	if (g_link.connection < 0) {
		return;
	}
	close_connection();
	free(g_link.incoming);
	g_link.incoming = NULL;
	g_link.received = 0;
	set_queue(0);
	segmap_tell_owner(&g_link.visit->gone, peer_gone, g_link.visit);
}

/* The last word of this side, if the peer takes it at once. */
static void
say_goodbye(enum segmap_status status, const char *detail)
{
	struct {
		struct segmap_wire_header header;
		struct segmap_wire_goodbye body;
		char detail[64];
	} goodbye = { .header = { .type = SEGMAP_WIRE_GOODBYE, .version = SEGMAP_WIRE_HANDSHAKE_VERSION } };
	size_t length = strnlen(detail, sizeof(goodbye.detail));
	size_t whole = offsetof(typeof(goodbye), detail) + (length + 7) / 8 * 8;
	bool torn;
	ssize_t sent;

	pthread_mutex_lock(&g_link.lock);
	torn = !TAILQ_EMPTY(&g_link.queue) && TAILQ_FIRST(&g_link.queue)->written > 0;
	pthread_mutex_unlock(&g_link.lock);
	if (torn) {
		return;
	}
	goodbye.header.length = (uint32_t)whole;
	goodbye.body.status = status;
	goodbye.body.detail_length = (uint32_t)length;
	memcpy(goodbye.detail, detail, length);
	sent = send(g_link.connection, &goodbye, whole, MSG_NOSIGNAL | MSG_DONTWAIT);
	(void)sent;
}

static void
accept_peer(void)
{
	int connection = accept4(g_link.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct visit *visit;

	if (connection < 0) {
		return;
	}
	visit = calloc(1, sizeof(*visit));
	if (visit == NULL) {
		close(connection);
		return;
	}
	if (g_link.connection >= 0) {
		say_goodbye(SEGMAP_STATUS_CANCELLED, "a newer connection has come");
		hang_up();
	}
	g_link.visit = visit;
	g_link.connection = connection;
	visit->peer = ++g_link.peer;
	set_queue(g_link.peer);
	segmap_tell_owner(&visit->came, peer_came, visit);
}

/* NULL, or what is wrong with a frame of this length. */
static const char *
length_fault(uint32_t length)
{
	if (length < SEGMAP_WIRE_HEADER_BYTES || length % 8 != 0) {
		return "header.length: no frame is so long";
	}
	return length > SEGMAP_WIRE_FRAME_BYTES_MAX ? "header.length: over the limit" : NULL;
}

/* Where the next bytes of the frame go, and how many it takes. */
static void *
room(size_t *length)
{
	if (g_link.incoming == NULL) {
		*length = sizeof(g_link.prefix) - g_link.received;
		return g_link.prefix + g_link.received;
	}
	*length = g_link.incoming->length - g_link.received;
	return g_link.incoming->data + g_link.received;
}

/* The length is known: false if the peer has to go. */
static bool
begin_frame(void)
{
	const char *fault;
	uint32_t length;

	memcpy(&length, g_link.prefix, sizeof(length));
	fault = length_fault(length);
	if (fault != NULL) {
		say_goodbye(SEGMAP_STATUS_BAD_MESSAGE, fault);
		return false;
	}
	g_link.incoming = segmap_frame_new(length);
	if (g_link.incoming == NULL) {
		say_goodbye(SEGMAP_STATUS_LIMIT, "out of memory");
		return false;
	}
	memcpy(g_link.incoming->data, g_link.prefix, sizeof(g_link.prefix));
	return true;
}

static void
end_frame(void)
{
	struct segmap_frame *frame = g_link.incoming;

	g_link.incoming = NULL;
	g_link.received = 0;
	frame->peer = g_link.peer;
	atomic_fetch_add(&g_link.frames, 1);
	segmap_tell_owner(&frame->message, segmap_peer_frame, frame);
}

/* Read what is there, while frames may be received. False if the peer has gone, or has to. */
static bool
receive(void)
{
	while (atomic_load(&g_link.frames) < FRAMES_MAX) {
		size_t length;
		void *at = room(&length);
		ssize_t got = recv(g_link.connection, at, length, MSG_DONTWAIT);

		if (got < 0) {
			return errno == EAGAIN || errno == EINTR;
		}
		if (got == 0) {
			return false;
		}
		g_link.received += (uint32_t)got;
		if (g_link.incoming == NULL) {
			if (g_link.received == sizeof(g_link.prefix) && !begin_frame()) {
				return false;
			}
		} else if (g_link.received == g_link.incoming->length) {
			end_frame();
		}
	}
	return true;
}

/* Write what the peer takes. False if it has gone, or has to, or is to. */
static bool
write_queue(void)
{
	struct segmap_frame *frame;
	bool alive;

	pthread_mutex_lock(&g_link.lock);
	alive = g_link.queued_bytes <= QUEUE_BYTES_MAX;
	while (alive && (frame = TAILQ_FIRST(&g_link.queue)) != NULL) {
		ssize_t sent = send(g_link.connection, frame->data + frame->written, frame->length - frame->written,
				    MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent < 0) {
			alive = errno == EAGAIN || errno == EINTR;
			break;
		}
		frame->written += (uint32_t)sent;
		if (frame->written == frame->length) {
			TAILQ_REMOVE(&g_link.queue, frame, link);
			g_link.queued_bytes -= frame->length;
			free(frame);
		}
	}
	alive = alive && !(g_link.closing && TAILQ_EMPTY(&g_link.queue));
	pthread_mutex_unlock(&g_link.lock);
	return alive;
}

static bool
has_output(void)
{
	bool some;

	pthread_mutex_lock(&g_link.lock);
	some = !TAILQ_EMPTY(&g_link.queue) || g_link.closing;
	pthread_mutex_unlock(&g_link.lock);
	return some;
}

static void
serve_once(void)
{
	struct pollfd fds[3] = {
		{ .fd = g_link.wakeup, .events = POLLIN },
		{ .fd = g_link.listener, .events = POLLIN },
		{ .fd = g_link.connection },
	};
	uint64_t count;

	if (atomic_load(&g_link.frames) < FRAMES_MAX) {
		fds[2].events |= POLLIN;
	}
	if (has_output()) {
		fds[2].events |= POLLOUT;
	}
	if (poll(fds, 3, -1) < 0) {
		return;
	}
	if (fds[0].revents != 0) {
		ssize_t got = read(g_link.wakeup, &count, sizeof(count));

		(void)got;
	}
	if (g_link.connection >= 0 && ((fds[2].revents & (POLLERR | POLLNVAL)) != 0 || !write_queue() ||
				       ((fds[2].revents & (POLLIN | POLLHUP)) != 0 && !receive()))) {
		hang_up();
	}
	if (fds[1].revents != 0) {
		accept_peer();
	}
}

static void *
serve(void *ctx)
{
	(void)ctx;
	spdk_unaffinitize_thread();
	while (!atomic_load(&g_link.stop)) {
		serve_once();
	}
	if (g_link.connection >= 0) {
		say_goodbye(SEGMAP_STATUS_CANCELLED, "the target ends");
		close_connection();
	}
	free(g_link.incoming);
	g_link.incoming = NULL;
	return NULL;
}

/* ---- start and end ---- */

/* A socket file that nobody listens on is in the way. */
static void
remove_stale(const struct sockaddr_un *address)
{
	int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (probe < 0) {
		return;
	}
	if (connect(probe, (const struct sockaddr *)address, sizeof(*address)) < 0 && errno == ECONNREFUSED) {
		unlink(address->sun_path);
	}
	close(probe);
}

static int
listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	mode_t mask;
	int fd, rc;

	if (strlen(path) >= sizeof(address.sun_path)) {
		SPDK_ERRLOG("socket path %s is too long\n", path);
		return -ENAMETOOLONG;
	}
	strcpy(address.sun_path, path);
	strcpy(g_link.path, path);
	remove_stale(&address);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) {
		return -errno;
	}
	mask = umask(0177);
	rc = bind(fd, (const struct sockaddr *)&address, sizeof(address));
	umask(mask);
	if (rc < 0 || listen(fd, BACKLOG) < 0) {
		rc = -errno;
		SPDK_ERRLOG("cannot listen on %s: %s\n", path, spdk_strerror(-rc));
		close(fd);
		return rc;
	}
	return fd;
}

int
segmap_link_start(void)
{
	const char *path = g_path != NULL ? g_path : getenv(PATH_VARIABLE);
	int rc;

	g_link.connection = -1;
	pthread_mutex_init(&g_link.lock, NULL);
	TAILQ_INIT(&g_link.queue);
	if (path == NULL || path[0] == '\0') {
		SPDK_NOTICELOG("no data plane socket: tables stay INVALID\n");
		return 0;
	}
	g_link.wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (g_link.wakeup < 0) {
		return -errno;
	}
	g_link.listener = listen_at(path);
	if (g_link.listener < 0) {
		rc = g_link.listener;
		goto close_wakeup;
	}
	rc = -pthread_create(&g_link.thread, NULL, serve, NULL);
	if (rc != 0) {
		goto close_listener;
	}
	g_link.started = true;
	return 0;

close_listener:
	close(g_link.listener);
	unlink(g_link.path);
close_wakeup:
	close(g_link.wakeup);
	return rc;
}

void
segmap_link_stop(void)
{
	if (!g_link.started) {
		return;
	}
	atomic_store(&g_link.stop, true);
	wake();
	pthread_join(g_link.thread, NULL);
	g_link.started = false;
	set_queue(0);
	close(g_link.listener);
	unlink(g_link.path);
}
