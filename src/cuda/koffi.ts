/**
 * What loading a library with koffi takes, whichever library it is. Nothing native is loaded before `importKoffi` is called.
 * No Effect here.
 *
 * @since 0.1.0
 */
import type Koffi from "koffi"

/** A place that was tried, and what is wrong with it. */
export interface Tried {
  readonly path: string
  readonly problem: string
}

/** Loads koffi, or says why it cannot be used. A bundle can hold a copy without its native part, or without anything. */
export const importKoffi = async (): Promise<typeof Koffi | Tried> => {
  try {
    const { default: koffi }: { readonly default?: typeof Koffi } = await import("koffi")
    if (typeof koffi?.load === "function") return koffi
    return { path: koffiPath, problem: "it was loaded without its functions" }
  } catch (error) {
    return { path: koffiPath, problem: messageOf(error) }
  }
}

/** Where koffi is, as far as a failure tells. */
export const koffiPath = "the koffi package"

/** `RTLD_NOW | RTLD_NODELETE` of Linux: a library that is opened so is never unloaded. */
export const keepFlags = 0x2 | 0x1000

export const messageOf = (error: unknown): string => error instanceof Error ? error.message : String(error)
