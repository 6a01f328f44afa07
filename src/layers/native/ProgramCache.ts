/**
 * Compiled programs on disk, one file each, named by a hash of everything that determines the output.
 *
 * Files are renamed into place complete and carry a hash of their content, so that processes can share a folder and end
 * at any moment. Images run on the GPU with the program's data, so only files are trusted that no other user can have
 * written. Nothing here fails: a cache that does not work is ignored and logged at debug level.
 */
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import { createHash, randomUUID } from "node:crypto"
import { constants } from "node:fs"
import type { Stats } from "node:fs"
import { lstat, mkdir, open, readdir, rename, rm, stat, utimes, writeFile } from "node:fs/promises"
import type { FileHandle } from "node:fs/promises"
import { homedir } from "node:os"
import { isAbsolute, join } from "node:path"
import { messageOf } from "../../cuda/koffi.ts"
import type { Output } from "./nvrtcProgram.ts"

/** Change this when files of an older version must no longer be read. */
const format = "effect-cuda program 1"

const suffix = ".program"

/** Files have another suffix while they are written. Abandoned ones are removed after this many milliseconds. */
const unfinishedAfter = 3_600_000

/** Prune once per this many writes. */
const writesPerPrune = 16

/** In bytes. Larger files are neither written nor read. Compiler output is far smaller. */
const largestFile = 256 * 1024 ** 2

/** Does not follow a link, and does not wait for the other end of a FIFO. Windows has neither flag. */
const readFlags = constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0)

const newLine = 10

/**
 * The cache folder of the platform and user. Relative paths in the environment are ignored, as the XDG specification
 * requires: after a change of directory they would name a different folder, perhaps another user's.
 */
export const cacheFolder = (
  environment: Readonly<Record<string, string | undefined>>,
  platform: NodeJS.Platform = process.platform
): string | undefined => {
  const named = environment[platform === "win32" ? "LOCALAPPDATA" : "XDG_CACHE_HOME"]
  if (named !== undefined && isAbsolute(named)) return join(named, "effect-cuda")
  const home = platform === "win32" ? homeOf({}) : homeOf(environment)
  if (home === undefined || !isAbsolute(home)) return undefined
  return join(home, platform === "win32" ? "AppData/Local" : ".cache", "effect-cuda")
}

/** Users without an entry in the system's list may have no home. */
const homeOf = ({ HOME }: Readonly<Record<string, string | undefined>>): string | undefined => {
  try {
    return HOME ?? homedir()
  } catch {
    return undefined
  }
}

export class ProgramCache {
  readonly #folder: string
  readonly #maxBytes: number
  #writes = 0

  constructor(folder: string, maxBytes: number) {
    this.#folder = folder
    this.#maxBytes = maxBytes
  }

  /** Reads the program with a key, if its file is intact, and marks it as the most recently used. */
  read(key: string): Effect.Effect<Output | undefined> {
    return Effect.tryPromise(() => this.#read(key)).pipe(
      Effect.catch((error) =>
        Effect.as(
          isMissing(error.cause)
            ? Effect.void
            : Effect.logDebug(
              `No compiled program could be read from ${this.#folder}: ${messageOf(error.cause)}`,
              error.cause
            ),
          undefined
        )
      )
    )
  }

  /** Writes a program. Now and then, removes the least recently used ones beyond the size limit. */
  write(key: string, output: Output): Effect.Effect<void> {
    return Effect.tryPromise(() => this.#write(key, output)).pipe(
      Effect.catch((error) =>
        Effect.logDebug(
          `A compiled program could not be kept in ${this.#folder}: ${messageOf(error.cause)}`,
          error.cause
        )
      )
    )
  }

  async #read(key: string): Promise<Output | undefined> {
    await checkFolder(this.#folder)
    const path = join(this.#folder, key + suffix)
    const output = decode(key, await readTrusted(path))
    const now = new Date()
    if (output === undefined) await rm(path, { force: true })
    else await utimes(path, now, now).catch(() => {})
    return output
  }

  async #write(key: string, output: Output): Promise<void> {
    const bytes = encode(key, output)
    if (bytes.byteLength > largestFile) throw new Error(`it has ${bytes.byteLength} bytes`)
    await mkdir(this.#folder, { recursive: true, mode: 0o700 })
    await checkFolder(this.#folder)
    const writing = join(this.#folder, `${key}.${randomUUID()}.writing`)
    try {
      await writeFile(writing, bytes, { mode: 0o600, flag: "wx" })
      await rename(writing, join(this.#folder, key + suffix))
    } catch (error) {
      await rm(writing, { force: true })
      throw error
    }
    if (this.#writes++ % writesPerPrune === 0) await this.#prune()
  }

  /** Other processes may prune at the same time, so a file that is already gone does not matter. */
  async #prune(): Promise<void> {
    const names = (await readdir(this.#folder)).filter((name) => name.endsWith(suffix) || name.endsWith(".writing"))
    const listed = await Promise.all(names.map((name) => describe(join(this.#folder, name))))
    const files = listed.filter((file) => file !== undefined).sort((one, other) => other.at - one.at)
    let bytes = 0
    for (const { at, path, size } of files) {
      const isUnfinished = path.endsWith(".writing")
      if (!isUnfinished) bytes += size
      if (isUnfinished ? Date.now() - at > unfinishedAfter : bytes > this.#maxBytes) await rm(path, { force: true })
    }
  }
}

/** The folder may contain other entries; only plain files belong to the cache. */
const describe = async (path: string) => {
  try {
    const stats = await lstat(path)
    return stats.isFile() ? { path, size: stats.size, at: stats.mtimeMs } : undefined
  } catch {
    return undefined
  }
}

/** The folder itself may be a link, for example to a larger disk. */
const checkFolder = async (folder: string): Promise<void> => {
  const stats = await stat(folder)
  if (!stats.isDirectory()) throw new Error("it is not a folder")
  checkPrivate(stats, "the folder")
}

/** Reads a file that is checked after it was opened, so that it cannot be exchanged in between. */
const readTrusted = async (path: string): Promise<Buffer> => {
  const file = await open(path, readFlags)
  try {
    const stats = await file.stat()
    if (!stats.isFile()) throw new Error("the program is not a plain file")
    checkPrivate(stats, "the file")
    if (stats.size > largestFile) throw new Error(`the file has ${stats.size} bytes`)
    return await readBytes(file, stats.size)
  } finally {
    await file.close()
  }
}

const readBytes = async (file: FileHandle, size: number): Promise<Buffer> => {
  const bytes = Buffer.allocUnsafeSlow(size)
  let length = 0
  while (length < size) {
    const { bytesRead } = await file.read(bytes, length, size - length, length)
    if (bytesRead === 0) break
    length += bytesRead
  }
  return bytes.subarray(0, length)
}

/** Writable for the group or for everyone. */
const writableForOthers = 0o022

/** Windows has no owners and modes of this kind. There, the access control list protects the folder. */
const checkPrivate = ({ mode, uid }: Stats, what: string): void => {
  const own = process.geteuid?.()
  if (own === undefined) return
  if (uid !== own) throw new Error(`${what} belongs to another user (${uid})`)
  if ((mode & writableForOthers) !== 0) {
    throw new Error(`${what} is writable for other users (mode ${(mode & 0o777).toString(8)})`)
  }
}

const isMissing = (error: unknown): boolean => Predicate.hasProperty(error, "code") && error.code === "ENOENT"

/** Three lines and the image: the format, a hash of all that follows, and the metadata. */
const encode = (key: string, { image, log, loweredNames }: Output): Uint8Array => {
  const about = Buffer.from(`${JSON.stringify({ key, log, loweredNames: [...loweredNames] })}\n`)
  const hash = createHash("sha256").update(about).update(image).digest("hex")
  return Buffer.concat([Buffer.from(`${format}\n${hash}\n`), about, image])
}

/** `undefined` for a file of another format, of another key, or with damaged content. */
const decode = (key: string, file: Buffer): Output | undefined => {
  const hashAt = format.length + 1
  const aboutAt = hashAt + 64 + 1
  if (file.subarray(0, hashAt).toString() !== `${format}\n`) return undefined
  const hash = createHash("sha256").update(file.subarray(aboutAt)).digest("hex")
  if (file.subarray(hashAt, aboutAt).toString() !== `${hash}\n`) return undefined
  const imageAt = file.indexOf(newLine, aboutAt) + 1
  const about: unknown = JSON.parse(file.subarray(aboutAt, imageAt).toString())
  if (!isAbout(about) || about.key !== key) return undefined
  return { image: new Uint8Array(file.subarray(imageAt)), log: about.log, loweredNames: new Map(about.loweredNames) }
}

interface About {
  readonly key: string
  readonly log: string
  readonly loweredNames: ReadonlyArray<readonly [string, string]>
}

const isAbout = (u: unknown): u is About =>
  Predicate.hasProperty(u, "key") && Predicate.hasProperty(u, "log") && typeof u.log === "string" &&
  Predicate.hasProperty(u, "loweredNames") && Array.isArray(u.loweredNames) &&
  u.loweredNames.every((pair) => Array.isArray(pair) && pair.length === 2 && pair.every(Predicate.isString))
