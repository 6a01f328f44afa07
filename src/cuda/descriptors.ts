/**
 * Descriptors of other processes, which Linux copies on request. No Effect here.
 *
 * @since 0.1.0
 */
import type Koffi from "koffi"

/** A descriptor of this process, or the number of the error and the system call that failed. */
export type Taken =
  | { readonly descriptor: number }
  | { readonly call: string; readonly error: number }

/** Copies a descriptor of another process into this one, which closes it. */
export type TakeDescriptor = (pid: number, descriptor: number) => Taken

/** Numbers of system calls, the same on every architecture. */
const systemCalls = { close: { x64: 3, arm64: 57 }, open: 434, get: 438 }

/** Undefined on other systems than Linux. The C library's `syscall` is looked up at the first call, because few programs need it. */
export const findTakeDescriptor = (koffi: typeof Koffi): TakeDescriptor | undefined => {
  if (process.platform !== "linux" || (process.arch !== "x64" && process.arch !== "arm64")) return undefined
  const closeNumber = systemCalls.close[process.arch]
  let call: SystemCall | undefined
  return (pid, descriptor) => {
    call ??= findSystemCall(koffi)
    if (call === undefined) return { call: "syscall", error: noSystemCall }
    const holder = Number(call(systemCalls.open, pid, 0, 0))
    if (holder < 0) return { call: "pidfd_open", error: koffi.errno() }
    const taken = Number(call(systemCalls.get, holder, descriptor, 0))
    const error = taken < 0 ? koffi.errno() : 0
    call(closeNumber, holder, 0, 0)
    return taken < 0 ? { call: "pidfd_getfd", error } : { descriptor: taken }
  }
}

type SystemCall = (number: number, ...values: ReadonlyArray<number>) => number | bigint

/** `ENOSYS`, for a C library without `syscall`. */
const noSystemCall = 38

const findSystemCall = (koffi: typeof Koffi): SystemCall | undefined => {
  try {
    return koffi.load(null).func("syscall", "int64_t", ["int64_t", "int64_t", "int64_t", "int64_t"])
  } catch {
    return undefined
  }
}
