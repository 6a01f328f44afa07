/**
 * Text in diagrams.
 */

/**
 * Escapes everything that Mermaid may interpret as entities: all characters except letters, digits and spaces, and `_.:/-` within a
 * word. Mermaid accepts no empty text.
 */
export const mermaidText = (text: string): string =>
  (text || " ")
    .split(/(\r\n|[\r\n])/)
    .map((part, index) => index % 2 === 1 ? "<br/>" : part.replace(notPlain, (char) => `#${char.codePointAt(0)};`))
    .join("")

const notPlain = /[^\p{L}\p{N} _.:/-]|(?<![\p{L}\p{N}])[_.:/-]|[_.:/-](?![\p{L}\p{N}])/gu

/** Escapes text for a quoted label in the DOT language. */
export const dotText = (text: string): string => text.replace(/[\\"]/g, "\\$&").replace(/\r\n|[\r\n]/g, "\\n")
