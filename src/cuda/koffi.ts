/**
 * Loads koffi itself, with the helpers for loading any library through it. Nothing native is loaded before `importKoffi` is
 * called. No Effect here.
 *
 * @since 0.1.0
 */
import type Koffi from "koffi"

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

/** `RTLD_NOW | RTLD_NODELETE` on Linux: the library is never unloaded. */
export const keepFlags = 0x2 | 0x1000

export const messageOf = (error: unknown): string => error instanceof Error ? error.message : String(error)
