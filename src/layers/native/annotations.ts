/**
 * Annotations through NVTX: domains and categories by name, and the struct of each annotation, written once.
 */
import { argbColor, asciiMessage, attributesLayout, nvtxVersion } from "../../cuda/nvtx.ts"
import { load } from "../../cuda/nvtxLibrary.ts"
import type { NvtxLibrary } from "../../cuda/nvtxLibrary.ts"
import type { Annotation, AnnotationOptions, Annotator, Loaded } from "../Annotations.ts"

/** Loads NVTX. Never rejects. */
export const open = async (path: string | undefined): Promise<Loaded> => {
  const result = await load(path)
  if (result._tag === "Loaded") return { annotator: new Nvtx(result.library) }
  const places = result.searched.map((tried) => `${tried.path} (${tried.problem})`).join(", ")
  return { problem: `NVTX could not be loaded; tried ${places}` }
}

class Nvtx implements Annotator {
  readonly #library: NvtxLibrary
  /** By name. Domains and categories live as long as the process. */
  readonly #domains = new Map<string, number>()
  /** By domain, then by name. 0 means no category. */
  readonly #categories = new Map<number, Map<string, number>>()

  constructor(library: NvtxLibrary) {
    this.#library = library
  }

  annotate(message: string, { category, color, domain }: AnnotationOptions): Annotation {
    const { calls } = this.#library
    const handle = domain === undefined ? 0 : this.#domain(domain)
    const bytes = this.#attributes(message, color, category === undefined ? 0 : this.#category(handle, category))
    if (handle === 0) {
      return {
        start: () => calls.nvtxRangeStartEx(bytes),
        end: (range) => calls.nvtxRangeEnd(range),
        mark: () => calls.nvtxMarkEx(bytes)
      }
    }
    return {
      start: () => calls.nvtxDomainRangeStartEx(handle, bytes),
      end: (range) => calls.nvtxDomainRangeEnd(handle, range),
      mark: () => calls.nvtxDomainMarkEx(handle, bytes)
    }
  }

  nameStream(stream: number, name: string): void {
    this.#library.calls.nvtxNameCuStreamA?.(stream, name)
  }

  #domain(name: string): number {
    const known = this.#domains.get(name)
    if (known !== undefined) return known
    const made = this.#library.calls.nvtxDomainCreateA(name)
    this.#domains.set(name, made)
    return made
  }

  #category(domain: number, name: string): number {
    const categories = this.#categories.get(domain) ?? new Map<string, number>()
    this.#categories.set(domain, categories)
    const known = categories.get(name)
    if (known !== undefined) return known
    const made = categories.size + 1
    categories.set(name, made)
    if (domain === 0) this.#library.calls.nvtxNameCategoryA(made, name)
    else this.#library.calls.nvtxDomainNameCategoryA(domain, made, name)
    return made
  }

  /** The struct, followed by the text that it points to. Both are in one buffer, which does not move. */
  #attributes(message: string, color: number | undefined, category: number): Uint8Array {
    const text = new TextEncoder().encode(message)
    const buffer = new ArrayBuffer(attributesLayout.size + text.byteLength + 1)
    const bytes = new Uint8Array(buffer)
    bytes.set(text, attributesLayout.size)
    const view = new DataView(buffer)
    view.setUint16(attributesLayout.version, nvtxVersion, true)
    view.setUint16(attributesLayout.structSize, attributesLayout.size, true)
    view.setUint32(attributesLayout.category, category, true)
    if (isColor(color)) {
      view.setInt32(attributesLayout.colorType, argbColor, true)
      view.setUint32(attributesLayout.color, opaque + color, true)
    }
    view.setInt32(attributesLayout.messageType, asciiMessage, true)
    const address = this.#library.addressOf(buffer) + attributesLayout.size
    view.setBigUint64(attributesLayout.message, BigInt(address), true)
    return bytes
  }
}

/** The alpha part of a color. */
const opaque = 0xff000000

const isColor = (color: number | undefined): color is number =>
  color !== undefined && Number.isInteger(color) && color >= 0 && color <= 0xffffff
