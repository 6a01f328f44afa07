/**
 * Loads koffi itself, with the helpers for loading any library through it. Nothing native is loaded before `importKoffi` is
 * called. No Effect here.
 *
 * @since 0.1.0
 */
import type Koffi from "koffi"
import { inTurn } from "./asyncCalls.ts"

/** A location that was tried, and why it failed. */
export interface Tried {
  readonly path: string
  readonly problem: string
}

/** Loads koffi, or returns the problem with it. A bundle may contain koffi without its native part, or an empty module. */
export const importKoffi = async (): Promise<typeof Koffi | Tried> => {
  try {
    const { default: koffi }: { readonly default?: typeof Koffi } = await import("koffi")
    if (typeof koffi?.load === "function") return koffi
    return { path: koffiPath, problem: "it was loaded without its functions" }
  } catch (error) {
    return { path: koffiPath, problem: messageOf(error) }
  }
}

/** How failures refer to koffi. */
export const koffiPath = "the koffi package"

/** The stack size for calls off the JS thread: more than a main thread's usual 8 MiB, since compilers recurse deeply. */
export const stackSize = 16 * 1024 * 1024

/**
 * Makes koffi give its calls off the JS thread the stack that a compiler needs, instead of 128 KiB. This works only
 * before the first library is loaded with koffi on this thread.
 */
export const prepareStack = async (): Promise<void> => {
  try {
    const { default: koffi } = await import("koffi")
    if (koffi.config().async_stack_size! < stackSize) koffi.config({ async_stack_size: stackSize })
  } catch {
    // Without koffi, or too late: the first compilation reports it.
  }
}

/** `RTLD_NOW | RTLD_NODELETE` on Linux: the library is never unloaded. */
const keepFlags = 0x2 | 0x1000

const dlopenOf = (koffi: typeof Koffi) => koffi.load(null).func("dlopen", "uintptr_t", ["str", "int"])

/** Keeps a library loaded: koffi closes it when the thread that loaded it ends, but the driver's threads keep running. */
export const keepLoaded = (koffi: typeof Koffi, path: string): void => {
  if (process.platform !== "linux") return
  try {
    dlopenOf(koffi)(path, keepFlags)
  } catch {
    // Without dlopen, the library cannot be kept open, but it is loaded and works.
  }
}

/**
 * Opens a library off the JS thread, for large ones, and keeps it open: a call may outlive the worker thread that started it, whose
 * koffi then closes the library. If opening fails, koffi reports why.
 */
export const openForGood = (koffi: typeof Koffi, path: string): Promise<void> =>
  new Promise((resolve) => {
    if (process.platform !== "linux") return resolve()
    try {
      const open = dlopenOf(koffi)
      inTurn((onEnd) => open.async(path, keepFlags, onEnd), () => resolve())
    } catch {
      resolve()
    }
  })

export const messageOf = (error: unknown): string => error instanceof Error ? error.message : String(error)
