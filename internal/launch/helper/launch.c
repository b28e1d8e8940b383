// lodge-launch executes a plan: a list of system calls that Go computed
// (package lodge/internal/launch/plan holds the other side of the
// format). It decides nothing. It is freestanding and static because its
// start-up time is part of the start of every guest and of every exec, and
// because nothing of a C library can then misbehave between namespaces.
//
// The plan comes on descriptor 3. The parent runs it from the first operation;
// SPAWN makes one child that shares memory and descriptors (so that what one
// opens the other can use) and runs from an operation of its own until it
// execs. When an operation fails, whoever ran it stops, the child is killed
// and "error WHAT: WHY" goes to the status descriptor.

typedef unsigned char u8;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long u64;
typedef long s64;

_Static_assert(sizeof(u64) == 8, "written for 64-bit machines");

#if defined(__x86_64__)
enum { NR_read = 0, NR_write = 1, NR_mmap = 9, NR_exit_group = 231 };
static s64 sys(s64 nr, s64 a, s64 b, s64 c, s64 d, s64 e, s64 f) {
  s64 ret;
  register s64 r10 __asm__("r10") = d;
  register s64 r8 __asm__("r8") = e;
  register s64 r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(ret)
                   : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return ret;
}
// spawn is clone3 with a stack of the child's own, on which it calls fn(pc).
static s64 spawn(void *args, u64 size, void (*fn)(u64), u64 pc) {
  s64 ret;
  register s64 r8 __asm__("r8") = (s64)fn;
  register s64 r9 __asm__("r9") = (s64)pc;
  __asm__ volatile("syscall\n\t"
                   "test %%rax, %%rax\n\t"
                   "jnz 1f\n\t"
                   "xor %%ebp, %%ebp\n\t"
                   "mov %%r9, %%rdi\n\t"
                   "call *%%r8\n\t"
                   "ud2\n"
                   "1:"
                   : "=a"(ret)
                   : "a"(435L), "D"(args), "S"(size), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return ret;
}
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall launch\n\tud2\n");
#elif defined(__aarch64__)
enum { NR_read = 63, NR_write = 64, NR_mmap = 222, NR_exit_group = 94 };
static s64 sys(s64 nr, s64 a, s64 b, s64 c, s64 d, s64 e, s64 f) {
  register s64 x8 __asm__("x8") = nr;
  register s64 x0 __asm__("x0") = a;
  register s64 x1 __asm__("x1") = b;
  register s64 x2 __asm__("x2") = c;
  register s64 x3 __asm__("x3") = d;
  register s64 x4 __asm__("x4") = e;
  register s64 x5 __asm__("x5") = f;
  __asm__ volatile("svc #0"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                   : "memory");
  return x0;
}
static s64 spawn(void *args, u64 size, void (*fn)(u64), u64 pc) {
  register s64 x8 __asm__("x8") = 435;
  register s64 x0 __asm__("x0") = (s64)args;
  register s64 x1 __asm__("x1") = (s64)size;
  register s64 x9 __asm__("x9") = (s64)fn;
  register s64 x10 __asm__("x10") = (s64)pc;
  __asm__ volatile("svc #0\n\t"
                   "cbnz x0, 1f\n\t"
                   "mov x29, xzr\n\t"
                   "mov x0, x10\n\t"
                   "blr x9\n\t"
                   "brk #0\n"
                   "1:"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x9), "r"(x10)
                   : "memory");
  return x0;
}
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tmov x30, xzr\n\tbl launch\n\tbrk #0\n");
#else
#error "no system call interface for this machine"
#endif

enum { NR_pidfd_send_signal = 424 };  // the same on every machine
enum { PLAN_FD = 3, MAGIC = 0x3150474c, MAX_PLAN = 16 << 20, EINVAL_ = 22, SIGKILL_ = 9 };
enum { NUMERIC = 1 };  // header flag: the error number goes before the text

struct header {
  u32 magic, total, nops, data, datalen, status, flags, reserved;
};

// Argument modes, two bits each in op.modes, the first argument lowest.
enum { IMM = 0, REG = 1, DATA = 2 };

enum code {
  SYS = 1,   // reg[dst] = system call "target"; a negative result fails unless keep
  MOVE,      // reg[dst] = arg0
  JEQ,       // if arg0 == arg1 go on at target
  JNE,       //
  JLT,       // signed
  LOAD,      // reg[dst] = the signed 32 bits at data[arg0]
  STORE32,   // data[arg0] = arg1
  STORE64,   //
  TEXT,      // data[arg0] = arg1 in decimal and a zero byte; reg[dst] = its length
  DIFF,      // reg[dst] = whether arg2 bytes at data[arg0] and data[arg1] differ
  SPAWN,     // reg[dst] = clone3(data[arg0]); the child goes on at target
  FAIL,      // with error number arg0
  CHECK,     // fail as the child did, if it did
  END,       // all is well
};

struct op {
  u8 code, keep, dst, reserved;
  u32 label, modes, target;
  s64 arg[6];
};

struct clone_args {
  u64 flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
};

static struct header *head;
static struct op *ops;
static u8 *data;
static s64 reg[256];
static s32 child_pidfd = -1;
static volatile s32 child_error;
static volatile u32 child_label;
static u8 stack[65536] __attribute__((aligned(16)));

static const struct {
  s32 number;
  const char *text;
} why[] = {
    {1, "operation not permitted"}, {2, "no such file or directory"}, {5, "input/output error"},
    {6, "no such device"},          {7, "argument list too long"},    {8, "exec format error"},
    {11, "limit reached, try again"}, {12, "out of memory"},         {13, "permission denied"},
    {16, "device or resource busy"}, {17, "exists already"},         {18, "invalid cross-device link"},
    {19, "not supported by this kernel"}, {20, "not a directory"},   {21, "is a directory"},
    {22, "invalid argument"},       {23, "too many open files"},      {24, "too many open files"},
    {26, "text file busy"},         {28, "no space left on device"},  {30, "read-only file system"},
    {36, "file name too long"},     {38, "not supported by this kernel"}, {40, "is a symbolic link"},
    {75, "value too large"},        {95, "not supported"},            {98, "address in use"},
    {101, "network unreachable"},   {110, "timed out"},               {116, "stale file handle"},
    {122, "quota exceeded"},
};

static u32 put(char *out, u32 at, u32 max, const char *s) {
  while (*s && at < max) out[at++] = *s++;
  return at;
}

static u32 decimal(char *out, u64 n) {
  char t[24];
  u32 k = 0, len = 0;
  do t[k++] = (char)('0' + n % 10);
  while ((n /= 10));
  while (k) out[len++] = t[--k];
  out[len] = 0;
  return len;
}

static const char *text_at(u32 at) {
  return head && at < head->datalen ? (const char *)data + at : "plan";
}

// die reports a failure and ends the launcher; a child that was made but has
// not begun its program does not outlive it.
static void __attribute__((noreturn)) die(s32 number, const char *what) {
  char out[512], num[24];
  u32 n = put(out, 0, 500, "error ");
  if (head && head->flags & NUMERIC) {
    decimal(num, (u64)number);
    n = put(out, n, 500, num);
    n = put(out, n, 500, " ");
  }
  n = put(out, n, 400, what);
  n = put(out, n, 500, ": ");
  u32 i = 0, known = sizeof why / sizeof *why;
  while (i < known && why[i].number != number) i++;
  if (i < known) {
    n = put(out, n, 500, why[i].text);
  } else {
    decimal(num, (u64)number);
    n = put(out, n, 500, "error number ");
    n = put(out, n, 500, num);
  }
  out[n++] = '\n';
  if (child_pidfd >= 0) sys(NR_pidfd_send_signal, child_pidfd, SIGKILL_, 0, 0, 0, 0);
  sys(NR_write, head ? (s64)head->status : 4, (s64)out, n, 0, 0, 0);
  for (;;) sys(NR_exit_group, 1, 0, 0, 0, 0, 0);
}

static void run(u64 pc, int child);

static void child_main(u64 pc) { run(pc, 1); }

static void __attribute__((noreturn)) fail(int child, s32 number, u32 label) {
  if (number < 0) number = -number;
  if (!child) die(number, text_at(label));
  child_label = label;
  __atomic_store_n(&child_error, number ? number : EINVAL_, __ATOMIC_RELEASE);
  for (;;) sys(NR_exit_group, 111, 0, 0, 0, 0, 0);  // the parent waits for the child's tid to be cleared
}

// value reads argument i: a number, a register, or the address of data.
static s64 value(const struct op *o, int i, int child) {
  s64 v = o->arg[i];
  switch (o->modes >> (2 * i) & 3) {
    case IMM:
      return v;
    case REG:
      return reg[v & 255];
    case DATA:
      if (v >= 0 && v < (s64)head->datalen) return (s64)(data + v);
  }
  fail(child, EINVAL_, o->label);
}

// place is the data at argument i's offset, with room for n bytes.
static u8 *place(const struct op *o, int i, s64 n, int child) {
  s64 v = o->arg[i];
  if (v < 0 || n < 0 || v > (s64)head->datalen - n) fail(child, EINVAL_, o->label);
  return data + v;
}

static s64 make(const struct op *o, int child) {
  if (child || child_pidfd >= 0) fail(child, EINVAL_, o->label);
  struct clone_args *a = (void *)place(o, 0, 88, child);
  a->stack = (u64)stack;
  a->stack_size = sizeof stack;
  s64 r = spawn(a, 88, child_main, o->target);
  if (r > 0 && a->pidfd) child_pidfd = *(s32 *)a->pidfd;
  return r;
}

static int differ(const u8 *a, const u8 *b, s64 n) {
  while (n-- > 0)
    if (*a++ != *b++) return 1;
  return 0;
}

static void run(u64 pc, int child) {
  for (;; pc++) {
    if (pc >= head->nops) fail(child, EINVAL_, 0);
    const struct op *o = &ops[pc];
    s64 r;
    switch (o->code) {
      case SYS:
        r = sys(o->target, value(o, 0, child), value(o, 1, child), value(o, 2, child), value(o, 3, child),
                value(o, 4, child), value(o, 5, child));
        if (r < 0 && r > -4096 && !o->keep) fail(child, (s32)-r, o->label);
        reg[o->dst] = r;
        break;
      case MOVE:
        reg[o->dst] = value(o, 0, child);
        break;
      case JEQ:
      case JNE:
        if ((value(o, 0, child) == value(o, 1, child)) == (o->code == JEQ)) pc = (u64)o->target - 1;
        break;
      case JLT:
        if (value(o, 0, child) < value(o, 1, child)) pc = (u64)o->target - 1;
        break;
      case LOAD:
        reg[o->dst] = __atomic_load_n((s32 *)place(o, 0, 4, child), __ATOMIC_ACQUIRE);
        break;
      case STORE32:
        __atomic_store_n((s32 *)place(o, 0, 4, child), (s32)value(o, 1, child), __ATOMIC_RELEASE);
        break;
      case STORE64:
        __atomic_store_n((s64 *)place(o, 0, 8, child), value(o, 1, child), __ATOMIC_RELEASE);
        break;
      case TEXT:
        reg[o->dst] = decimal((char *)place(o, 0, 24, child), (u64)value(o, 1, child));
        break;
      case DIFF:
        reg[o->dst] = differ(place(o, 0, o->arg[2], child), place(o, 1, o->arg[2], child), o->arg[2]);
        break;
      case SPAWN:
        r = make(o, child);
        if (r < 0) fail(child, (s32)-r, o->label);
        reg[o->dst] = r;
        break;
      case FAIL:
        fail(child, (s32)value(o, 0, child), o->label);
      case CHECK:
        r = __atomic_load_n(&child_error, __ATOMIC_ACQUIRE);
        if (r) fail(child, (s32)r, child_label);
        child_pidfd = -1;  // it runs its program: no longer ours to kill
        break;
      case END:
        for (;;) sys(NR_exit_group, 0, 0, 0, 0, 0, 0);
      default:
        fail(child, EINVAL_, o->label);
    }
  }
}

static void fill(u8 *to, u64 n) {
  while (n) {
    s64 r = sys(NR_read, PLAN_FD, (s64)to, (s64)n, 0, 0, 0);
    if (r == -4) continue;
    if (r <= 0) die(r < 0 ? (s32)-r : 5, "read the plan");
    to += r;
    n -= (u64)r;
  }
}

void __attribute__((noreturn, used)) launch(void) {
  struct header h;
  fill((u8 *)&h, sizeof h);
  u64 used = sizeof h + (u64)h.nops * sizeof(struct op);
  if (h.magic != MAGIC || h.total > MAX_PLAN || h.nops > MAX_PLAN / sizeof(struct op) || h.data < used ||
      (u64)h.data + h.datalen > h.total || h.datalen == 0)
    die(EINVAL_, "plan");
  // read and write, private and anonymous
  s64 m = sys(NR_mmap, 0, h.total, 3, 0x22, -1, 0);
  if (m < 0 && m > -4096) die((s32)-m, "memory for the plan");
  u8 *p = (u8 *)m;
  fill(p + sizeof h, h.total - sizeof h);
  p[h.data + h.datalen - 1] = 0;  // so that every text ends
  ops = (struct op *)(p + sizeof h);
  data = p + h.data;
  *(struct header *)p = h;
  head = (struct header *)p;
  run(0, 0);
  for (;;) sys(NR_exit_group, 1, 0, 0, 0, 0, 0);
}
