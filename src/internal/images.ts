/**
 * Recognizes images by their bytes. The driver loads many broken images without an error, and fails later or not at all, so this refuses
 * broken images.
 */

/** The kind of an image, or a description of what the bytes are instead. */
export type Recognized =
  | { readonly _tag: "Image"; readonly kind: "cubin" | "ptx" | "fatbin"; readonly architecture: string | undefined }
  | { readonly _tag: "NoImage"; readonly problem: string }

const image = (kind: "cubin" | "ptx" | "fatbin", architecture?: string): Recognized => ({
  _tag: "Image",
  kind,
  architecture
})

const noImage = (problem: string): Recognized => ({ _tag: "NoImage", problem })

/** Recognizes an image by its first bytes, and checks its length against its header. */
export const recognize = (bytes: Uint8Array): Recognized => {
  if (bytes.byteLength === 0) return noImage("nothing: 0 bytes")
  const start = latin1(bytes.subarray(0, 8))
  if (start.startsWith("\x7fELF")) return recognizeElf(bytes)
  if (start.startsWith("\x50\xed\x55\xba") || start.startsWith("\xba\x55\xed\x50")) return recognizeFatbin(bytes)
  if (start.startsWith("\xed\x43\x4e\x7f") || start.startsWith("\x7fNC\xed")) {
    return noImage("LTO-IR, which must be linked first")
  }
  if (start.startsWith("!<arch>\n")) return noImage("a static library")
  return recognizePtx(bytes)
}

/** `EM_CUDA`. */
const cudaMachine = 190

const elfHeaderSize = 64

const recognizeElf = (bytes: Uint8Array): Recognized => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (bytes.byteLength < elfHeaderSize) return noImage("a truncated ELF file")
  const is64 = view.getUint8(4) === 2
  const machine = view.getUint16(18, true)
  if (machine !== cudaMachine) return noImage(`an ELF file for machine ${machine}, which is not a GPU (${cudaMachine})`)
  if (!is64) return noImage("a 32-bit CUBIN")
  const segments = tableEnd(view, 32, 54)
  const sections = tableEnd(view, 40, 58)
  const size = Math.max(segments, sections)
  if (size > bytes.byteLength) return noImage(`a truncated CUBIN: ${bytes.byteLength} of at least ${size} bytes`)
  return image("cubin")
}

/** Where a table of an ELF file ends: its offset, and the size and number of its entries. */
const tableEnd = (view: DataView, offsetAt: number, entryAt: number): number =>
  Number(view.getBigUint64(offsetAt, true)) + view.getUint16(entryAt, true) * view.getUint16(entryAt + 2, true)

const fatbinHeaderSize = 16

/** One header after another, each with the size of what follows it. */
const recognizeFatbin = (bytes: Uint8Array): Recognized => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (view.getUint8(0) === 0xba) return noImage("a fatbin with the wrong byte order")
  if (bytes.byteLength < fatbinHeaderSize) return noImage("a truncated fatbin")
  const size = view.getUint16(6, true) + Number(view.getBigUint64(8, true))
  if (size > bytes.byteLength) return noImage(`a truncated fatbin: ${bytes.byteLength} of ${size} bytes`)
  return image("fatbin")
}

/** In bytes. Comments before the directives are far shorter; scanning more would block the event loop for long. */
const longestPreamble = 256 * 1024 ** 2

/**
 * PTX begins with `.version`, immediately followed by `.target`; only blanks and comments may come before and between.
 * Scans bytes instead of text: an image may be longer than the longest string, and time must stay linear in its length.
 */
const recognizePtx = (bytes: Uint8Array): Recognized => {
  const nul = bytes.indexOf(0)
  const end = nul < 0 ? bytes.byteLength : nul
  if (!isPrintable(bytes[0]!) || !isZero(bytes.subarray(end))) {
    return noImage(`${bytes.byteLength} bytes that begin with ${firstBytes(bytes)}`)
  }
  const preambleEnd = Math.min(end, longestPreamble)
  const version = directiveAt(bytes, 0, preambleEnd, ".version")
  if (version === undefined || !/^\d+\.\d+/.test(version.operand)) {
    return noImage("text that does not begin with .version, as PTX does")
  }
  const target = directiveAt(bytes, version.end, preambleEnd, ".target")
  const [name] = /^\w+/.exec(target?.operand ?? "") ?? []
  return name === undefined ? noImage("PTX without a .target") : image("ptx", name.replace(/^sm_/, "compute_"))
}

const [tab, newLine, carriageReturn, space, star, slash, tilde] = [9, 10, 13, 32, 42, 47, 126]

const isBlank = (byte: number): boolean => byte === space || (byte >= tab && byte <= carriageReturn)

const isPrintable = (byte: number): boolean => isBlank(byte) || (byte > space && byte <= tilde)

/** Whether all bytes are 0, which they are if the first is and each equals the one before it. */
const isZero = (bytes: Uint8Array): boolean =>
  bytes.byteLength === 0 || (bytes[0] === 0 && Buffer.compare(bytes.subarray(1), bytes.subarray(0, -1)) === 0)

/** Names of targets and numbers of versions are far shorter. */
const longestOperand = 64

/** The operand of a directive that comes next, and where it ends. */
const directiveAt = (bytes: Uint8Array, from: number, end: number, name: string) => {
  const at = skipBlanks(bytes, from, end)
  const nameEnd = at + name.length
  if (nameEnd > end || latin1(bytes.subarray(at, nameEnd)) !== name) return undefined
  const start = skipBlanks(bytes, nameEnd, end)
  if (start === nameEnd) return undefined
  const [operand = ""] = /^[\w.]*/.exec(latin1(bytes.subarray(start, Math.min(end, start + longestOperand)))) ?? []
  return { operand, end: start + operand.length }
}

/** Where blanks and comments end. */
const skipBlanks = (bytes: Uint8Array, from: number, end: number): number => {
  let at = from
  while (at < end) {
    const byte = bytes[at]!
    if (isBlank(byte)) at++
    else if (byte === slash && bytes[at + 1] === slash) at = lineEnd(bytes, at + 2, end)
    else if (byte === slash && bytes[at + 1] === star) at = commentEnd(bytes, at + 2, end)
    else break
  }
  return Math.min(at, end)
}

const lineEnd = (bytes: Uint8Array, from: number, end: number): number => {
  let at = from
  while (at < end && bytes[at] !== newLine) at++
  return at
}

const commentEnd = (bytes: Uint8Array, from: number, end: number): number => {
  let at = from
  while (at < end && !(bytes[at] === star && bytes[at + 1] === slash)) at++
  return at + 2
}

const latin1 = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1")

const firstBytes = (bytes: Uint8Array): string =>
  Array.from(bytes.subarray(0, 8), (byte) => byte.toString(16).padStart(2, "0")).join(" ")
