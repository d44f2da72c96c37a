/* MPTCP in place of TCP for programs that know nothing of it: preloaded by the dynamic linker, it stands in front of
 * the C library's socket().  A TCP socket is asked for as an MPTCP one, and as it was asked for where that fails
 * (no MPTCP in the kernel, switched off, forbidden).  errno of a success is left as it was.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

typedef int socket_function(int, int, int);

static int by_system_call(int family, int type, int protocol)
{
#ifdef SYS_socket
	return (int)syscall(SYS_socket, family, type, protocol);
#else
	(void)family, (void)type, (void)protocol;
	errno = ENOSYS;
	return -1;
#endif
}

int socket(int family, int type, int protocol)
{
	static socket_function *following;
	int kind = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (!following) {
		following = (socket_function *)dlsym(RTLD_NEXT, "socket");
		if (!following)
			following = by_system_call;
	}
	if ((family == AF_INET || family == AF_INET6) && kind == SOCK_STREAM &&
	    (protocol == 0 || protocol == IPPROTO_TCP)) {
		int before = errno;
		int made = following(family, type, IPPROTO_MPTCP);

		if (made >= 0)
			return made;
		errno = before;
	}
	return following(family, type, protocol);
}
