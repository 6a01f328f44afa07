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

/** Undefined on other systems than Linux, and if the C library lacks `syscall`. */
export const findTakeDescriptor = (koffi: typeof Koffi): TakeDescriptor | undefined => {
  if (process.platform !== "linux" || (process.arch !== "x64" && process.arch !== "arm64")) return undefined
  const closeNumber = systemCalls.close[process.arch]
  try {
    const call = koffi.load(null).func("syscall", "int64_t", ["int64_t", "int64_t", "int64_t", "int64_t"])
    return (pid, descriptor) => {
      const holder = Number(call(systemCalls.open, pid, 0, 0))
      if (holder < 0) return { call: "pidfd_open", error: koffi.errno() }
      const taken = Number(call(systemCalls.get, holder, descriptor, 0))
      const error = taken < 0 ? koffi.errno() : 0
      call(closeNumber, holder, 0, 0)
      return taken < 0 ? { call: "pidfd_getfd", error } : { descriptor: taken }
    }
  } catch {
    return undefined
  }
}
