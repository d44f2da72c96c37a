/* The load generator's loop: prepared capsules out, replies counted by bytes.
 *
 * Loaded with ctypes by native.py, which holds the same struct; nothing is parsed on the way that need not be:
 * reads and writes with in-capsule data have replies of one known size, and only the first reply header of each
 * recv() is looked at, to notice an error or a surprise. Writes with R2T are answered from the R2T's own fields.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

enum { SLOTS = 8192, IOVECS = 1024, RX_BYTES = 1 << 18, LATENCIES = 1 << 18, HEAD_BYTES = 160, STALL_SECONDS = 5 };
enum { OK = 0, PEER_CLOSED = -1, STALLED = -2, UNEXPECTED = -3, QUEUE_FULL = -4 };

struct loadgen {
    /* set by native.py */
    const uint8_t *heads;    /* `ring` capsule heads of `head_bytes` each */
    const uint8_t *payloads; /* `payload_count` payloads of `payload_stride` bytes, the data digest included */
    uint64_t limit;          /* commands to send in all; 0: no limit */
    int32_t fd;
    uint32_t r2t;            /* 1: the payload waits for R2T */
    uint32_t spin;
    uint32_t ring, head_bytes;
    uint32_t payload_bytes, payload_stride, payload_count; /* payload_bytes 0: none goes with the capsule (reads) */
    uint32_t unit_bytes;     /* of all replies to one command; r2t: of one reply */
    uint32_t check_head;     /* first u32 of a reply and its PLEN must be these */
    uint32_t check_plen;
    uint32_t depth;
    uint32_t batch;          /* new commands are sent when at least so many can be */
    uint32_t hdgst_bytes, ddgst_bytes, data_offset; /* of H2CData */
    uint32_t piece_bytes;    /* largest H2CData payload */
    int32_t payload_fd;      /* r2t: the payloads as a file, sent without copying them; -1: none */
    /* results, read by native.py */
    uint64_t done, sent, rx_bytes, tx_bytes, recv_calls, send_calls;
    uint32_t latency_count;
    uint32_t error_head[2];
    uint32_t latencies_ns[LATENCIES];
    /* own */
    uint32_t inited, slot_head, slot_tail, tx_offset, rx_partial;
    uint64_t tag_number, tag_ns;
    uint32_t crc_table[256];
    struct { struct iovec v[2]; uint32_t bytes, own; uint8_t head[HEAD_BYTES]; } slots[SLOTS];
    uint8_t rx[RX_BYTES + 64];
};

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t lg_size(void) { return sizeof(struct loadgen); }

static uint32_t crc32c(struct loadgen *g, const uint8_t *p, uint32_t n) {
    uint32_t c = ~0u;
    while (n--) c = g->crc_table[(c ^ *p++) & 255] ^ c >> 8;
    return ~c;
}

static void setup(struct loadgen *g) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c >> 1 ^ (c & 1 ? 0x82F63B78u : 0);
        g->crc_table[i] = c;
    }
    g->inited = 1;
}

static int push(struct loadgen *g, const void *a, uint32_t an, const void *b, uint32_t bn) {
    uint32_t next = (g->slot_tail + 1) % SLOTS;
    if (next == g->slot_head) return QUEUE_FULL;
    g->slots[g->slot_tail].v[0] = (struct iovec){(void *)a, an};
    g->slots[g->slot_tail].v[1] = (struct iovec){(void *)b, bn};
    g->slots[g->slot_tail].bytes = an + bn;
    g->slot_tail = next;
    return OK;
}

static int push_command(struct loadgen *g) {
    const uint8_t *head = g->heads + (uint64_t)(g->sent % g->ring) * g->head_bytes;
    const uint8_t *payload = g->payloads + (uint64_t)(g->sent % (g->payload_count ? g->payload_count : 1)) * g->payload_stride;
    int in_capsule = g->payload_bytes && !g->r2t;
    g->sent++;
    return push(g, head, g->head_bytes, payload, in_capsule ? g->payload_stride : 0);
}

/* Commands up to the queue depth; the last one of a batch carries the latency tag when none is under way. */
static int refill(struct loadgen *g, uint64_t t) {
    uint64_t before = g->sent;
    if (g->sent - g->done + g->batch > g->depth) return OK;
    while (g->sent - g->done < g->depth && (!g->limit || g->sent < g->limit)) {
        int rc = push_command(g);
        if (rc) return rc;
    }
    if (g->sent != before && !g->tag_number) {
        g->tag_number = g->sent;
        g->tag_ns = t;
    }
    return OK;
}

static void completed(struct loadgen *g, uint64_t count, uint64_t t) {
    g->done += count;
    if (g->tag_number && g->done >= g->tag_number) {
        if (g->latency_count < LATENCIES) g->latencies_ns[g->latency_count++] = (uint32_t)(t - g->tag_ns);
        g->tag_number = 0;
    }
}

static void sent_bytes(struct loadgen *g, uint64_t n) {
    g->tx_bytes += n;
    n += g->tx_offset;
    while (g->slot_head != g->slot_tail && n >= g->slots[g->slot_head].bytes) {
        n -= g->slots[g->slot_head].bytes;
        g->slot_head = (g->slot_head + 1) % SLOTS;
    }
    g->tx_offset = (uint32_t)n;
}

/* Heads with send(), payloads with sendfile(): on loopback TCP that spares the sender its copy. */
static int flush_files(struct loadgen *g) {
    while (g->slot_head != g->slot_tail) {
        struct iovec *v = g->slots[g->slot_head].v;
        ssize_t n;
        if (g->tx_offset < v[0].iov_len) {
            int more = v[1].iov_len ? MSG_MORE : 0;
            n = send(g->fd, (uint8_t *)v[0].iov_base + g->tx_offset, v[0].iov_len - g->tx_offset, more | MSG_DONTWAIT | MSG_NOSIGNAL);
        } else {
            uint32_t skip = g->tx_offset - (uint32_t)v[0].iov_len;
            off_t at = (off_t)((uint8_t *)v[1].iov_base - g->payloads) + skip;
            n = sendfile(g->fd, g->payload_fd, &at, v[1].iov_len - skip);
        }
        g->send_calls++;
        if (n < 0) return errno == EAGAIN || errno == EINTR ? OK : errno;
        sent_bytes(g, (uint64_t)n);
    }
    return OK;
}

static int flush_out(struct loadgen *g) {
    if (g->r2t && g->payload_fd >= 0) return flush_files(g);
    while (g->slot_head != g->slot_tail) {
        struct iovec iov[IOVECS];
        uint32_t count = 0, skip = g->tx_offset;
        uint64_t want = 0;
        for (uint32_t s = g->slot_head; s != g->slot_tail && count + 2 <= IOVECS; s = (s + 1) % SLOTS)
            for (int k = 0; k < 2; k++) {
                uint8_t *base = g->slots[s].v[k].iov_base;
                uint32_t len = (uint32_t)g->slots[s].v[k].iov_len;
                if (skip >= len) { skip -= len; continue; }
                base += skip, len -= skip, skip = 0, want += len;
                if (count && (uint8_t *)iov[count - 1].iov_base + iov[count - 1].iov_len == base) iov[count - 1].iov_len += len;
                else iov[count++] = (struct iovec){base, len};
            }
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = count};
        ssize_t n = sendmsg(g->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
        g->send_calls++;
        if (n < 0) return errno == EAGAIN || errno == EINTR ? OK : errno;
        sent_bytes(g, (uint64_t)n);
        if ((uint64_t)n < want) return OK; /* the socket is full: read meanwhile */
    }
    return OK;
}

static int unexpected(struct loadgen *g, const uint8_t *p) {
    memcpy(g->error_head, p, 8);
    return UNEXPECTED;
}

/* One H2CData: its head is built in the slot (TTAG comes from the R2T), its payload is a prepared one. */
static int push_data(struct loadgen *g, const uint8_t *ids, uint32_t offset, uint32_t length, int last) {
    uint8_t *h = g->slots[g->slot_tail].head;
    uint32_t plen = g->data_offset + length + g->ddgst_bytes;
    uint64_t piece = offset / g->piece_bytes; /* every piece of a payload is stored with its digest */
    const uint8_t *payload = g->payloads + (g->done % g->payload_count) * (uint64_t)g->payload_stride
        + piece * (g->piece_bytes + (uint64_t)g->ddgst_bytes);
    memset(h, 0, g->data_offset);
    h[0] = 6;
    h[1] = (uint8_t)((last ? 4 : 0) | (g->hdgst_bytes ? 1 : 0) | (g->ddgst_bytes ? 2 : 0));
    h[2] = 24;
    h[3] = (uint8_t)g->data_offset;
    memcpy(h + 4, &plen, 4);
    memcpy(h + 8, ids, 4); /* CCCID, TTAG */
    memcpy(h + 12, &offset, 4);
    memcpy(h + 16, &length, 4);
    if (g->hdgst_bytes) {
        uint32_t crc = crc32c(g, h, 24);
        memcpy(h + 24, &crc, 4);
    }
    return push(g, h, g->data_offset, payload, length + g->ddgst_bytes);
}

static int answer_r2t(struct loadgen *g, const uint8_t *p) {
    uint32_t offset, length;
    memcpy(&offset, p + 12, 4);
    memcpy(&length, p + 16, 4);
    if (offset % g->piece_bytes || offset + length > g->payload_bytes) return unexpected(g, p);
    while (length) {
        uint32_t n = length < g->piece_bytes ? length : g->piece_bytes;
        if (g->ddgst_bytes && n < g->piece_bytes && offset + n != g->payload_bytes) return unexpected(g, p);
        int rc = push_data(g, p + 8, offset, n, n == length);
        if (rc) return rc;
        offset += n, length -= n;
    }
    return OK;
}

/* R2T writes: every PDU that comes is `unit_bytes` long, an R2T or a response. */
static int take_small(struct loadgen *g, uint32_t n, uint64_t t) {
    uint32_t at = 0, have = g->rx_partial + n;
    for (; have - at >= g->unit_bytes; at += g->unit_bytes) {
        const uint8_t *p = g->rx + at;
        int rc = OK;
        if (p[0] == 9) rc = answer_r2t(g, p);
        else if (p[0] == 5 && !((p[22] | p[23] << 8) >> 1)) completed(g, 1, t);
        else return unexpected(g, p);
        if (rc) return rc;
    }
    memmove(g->rx, g->rx + at, have - at);
    g->rx_partial = have - at;
    return OK;
}

static int take_counted(struct loadgen *g, uint32_t n, uint64_t t) {
    uint32_t skip = (g->unit_bytes - g->rx_partial) % g->unit_bytes;
    if (skip + 8 <= n) {
        uint32_t head[2];
        memcpy(head, g->rx + skip, 8);
        if (head[0] != g->check_head || head[1] != g->check_plen) return unexpected(g, g->rx + skip);
    }
    uint64_t have = (uint64_t)g->rx_partial + n;
    g->rx_partial = (uint32_t)(have % g->unit_bytes);
    completed(g, have / g->unit_bytes, t);
    return OK;
}

/* Run for `seconds`, or until `limit` commands are done. `refilling` 0: only drain. Returns an enum value or an errno. */
int lg_run(struct loadgen *g, double seconds, int refilling) {
    if (!g->inited) setup(g);
    uint64_t t = now_ns(), end = t + (uint64_t)(seconds * 1e9), last = t;
    uint32_t idle = 0;
    while (t < end) {
        int rc = refilling ? refill(g, t) : OK;
        if (rc || (rc = flush_out(g))) return rc;
        if (g->done == g->sent && (!refilling || (g->limit && g->done >= g->limit))) return OK;
        uint8_t *into = g->r2t ? g->rx + g->rx_partial : g->rx;
        ssize_t n = recv(g->fd, into, g->r2t ? RX_BYTES - g->rx_partial : RX_BYTES, MSG_DONTWAIT);
        if (n > 0) {
            t = last = now_ns();
            idle = 0;
            g->recv_calls++;
            g->rx_bytes += (uint64_t)n;
            rc = g->r2t ? take_small(g, (uint32_t)n, t) : take_counted(g, (uint32_t)n, t);
            if (rc) return rc;
        } else if (n == 0) {
            return PEER_CLOSED;
        } else if (errno != EAGAIN && errno != EINTR) {
            return errno;
        } else {
            if (!g->spin) {
                struct pollfd p = {g->fd, POLLIN | (g->slot_head != g->slot_tail ? POLLOUT : 0), 0};
                poll(&p, 1, 100);
                t = now_ns();
            } else if (++idle % 16 == 0) {
                t = now_ns();
            }
            if (t - last > STALL_SECONDS * 1000000000ull) return STALLED;
        }
    }
    return OK;
}
