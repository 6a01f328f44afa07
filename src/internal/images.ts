/**
 * Which kind of image some bytes are. The driver takes what is none without a word, and fails later or not at all, so
 * what is broken is found here.
 */

/** A kind of image, or what the bytes are instead. */
export type Recognized =
  | { readonly _tag: "Image"; readonly kind: "cubin" | "ptx" | "fatbin"; readonly architecture: string | undefined }
  | { readonly _tag: "NoImage"; readonly problem: string }

const image = (kind: "cubin" | "ptx" | "fatbin", architecture?: string): Recognized => ({
  _tag: "Image",
  kind,
  architecture
})

const noImage = (problem: string): Recognized => ({ _tag: "NoImage", problem })

/** Looks at the beginning of the bytes, and whether they are as long as they say. */
export const recognize = (bytes: Uint8Array): Recognized => {
  if (bytes.byteLength === 0) return noImage("nothing: 0 bytes")
  const start = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(8, bytes.byteLength)).toString("latin1")
  if (start.startsWith("\x7fELF")) return recognizeElf(bytes)
  if (start.startsWith("\x50\xed\x55\xba") || start.startsWith("\xba\x55\xed\x50")) return recognizeFatbin(bytes)
  if (start.startsWith("\xed\x43\x4e\x7f") || start.startsWith("\x7fNC\xed")) {
    return noImage("LTO-IR, which has to be linked")
  }
  if (start.startsWith("!<arch>\n")) return noImage("a static library")
  return recognizePtx(bytes)
}

/** `EM_CUDA`. */
const cudaMachine = 190

const elfHeaderSize = 64

const recognizeElf = (bytes: Uint8Array): Recognized => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (bytes.byteLength < elfHeaderSize) return noImage("an ELF file that is cut off")
  const is64 = view.getUint8(4) === 2
  const machine = view.getUint16(18, true)
  if (machine !== cudaMachine) return noImage(`an ELF file for machine ${machine}, which is no GPU (${cudaMachine})`)
  if (!is64) return noImage("a CUBIN of 32 bits")
  const segments = tableEnd(view, 32, 54)
  const sections = tableEnd(view, 40, 58)
  const size = Math.max(segments, sections)
  if (size > bytes.byteLength) return noImage(`a CUBIN that is cut off: ${bytes.byteLength} of at least ${size} bytes`)
  return image("cubin")
}

/** Where a table of an ELF file ends: its offset, and the size and number of its entries. */
const tableEnd = (view: DataView, offsetAt: number, entryAt: number): number =>
  Number(view.getBigUint64(offsetAt, true)) + view.getUint16(entryAt, true) * view.getUint16(entryAt + 2, true)

const fatbinHeaderSize = 16

/** One header after another, each with the size of what follows it. */
const recognizeFatbin = (bytes: Uint8Array): Recognized => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (view.getUint8(0) === 0xba) return noImage("a fatbin of another byte order")
  if (bytes.byteLength < fatbinHeaderSize) return noImage("a fatbin that is cut off")
  const size = view.getUint16(6, true) + Number(view.getBigUint64(8, true))
  if (size > bytes.byteLength) return noImage(`a fatbin that is cut off: ${bytes.byteLength} of ${size} bytes`)
  return image("fatbin")
}

const blank = /^(?:\s+|\/\/[^\n]*(?:\n|$)|\/\*[\s\S]*?\*\/)+/

/** PTX begins with its version and what it is for; what comes before is comments. */
const recognizePtx = (bytes: Uint8Array): Recognized => {
  const end = bytes.indexOf(0)
  const length = end < 0 ? bytes.byteLength : end
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, length).toString("latin1")
  const isText = /^[\t-\r -~]/.test(text) && bytes.subarray(length).every((byte) => byte === 0)
  if (!isText) return noImage(`${bytes.byteLength} bytes that begin with ${firstBytes(bytes)}`)
  const code = text.replace(blank, "")
  if (!/^\.version\s+\d+\.\d+/.test(code)) return noImage("text that does not begin with .version, as PTX does")
  const [, target] = /^\s*\.target\s+(\w+)/m.exec(code) ?? []
  return target === undefined ? noImage("PTX without a .target") : image("ptx", target.replace(/^sm_/, "compute_"))
}

const firstBytes = (bytes: Uint8Array): string =>
  Array.from(bytes.subarray(0, 8), (byte) => byte.toString(16).padStart(2, "0")).join(" ")
